"""What is around every request, as the operator has set it: observation, browsers' origins, keys."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from llava_gateway.api.base import Door
from llava_gateway.auth.api_keys import KeyFile, KeyFileError, Keys
from llava_gateway.auth.rate_limits import RateLimits
from llava_gateway.http.middleware.auth import Auth
from llava_gateway.http.middleware.observability import Observe, Recorder
from llava_gateway.http.middleware.origin import Origin
from llava_gateway.http.response import FailFor
from llava_gateway.observability.tracing import Tracing
from llava_gateway.observability.usage_log import UsageLog
from llava_gateway.settings import Settings, SettingsError

NO_KEY = ("/health", "/ready")
"""Paths that need no key besides the doors' public ones: an orchestrator's probes."""
EXPOSED = (
    *("x-request-id", "retry-after"),
    *(f"x-ratelimit-{value}-{what}" for value in ("limit", "remaining", "reset") for what in ("requests", "tokens")),
)
"""Headers that pages of `--cors-origins` may read."""


class Around:
    def __init__(self, settings: Settings, doors: Sequence[Door], fail_for: FailFor) -> None:
        """Raises SettingsError."""
        try:
            usage_log = UsageLog(Path(settings.usage_log)) if settings.usage_log else None
            self._tracing = Tracing(settings.trace_endpoint) if settings.trace_endpoint else None
            self._limits = RateLimits(settings.rate_limit_storage)
            keys = _keys(settings)
        except OSError as error:
            raise SettingsError(f"usage_log cannot be written: {error.strerror}") from error
        except ImportError as error:
            raise SettingsError("trace_endpoint needs llava-gateway[otel]") from error
        except (ValueError, KeyFileError) as error:
            raise SettingsError(str(error)) from error
        self.middleware = [Middleware(Observe, fail_for=fail_for, recorder=Recorder(usage_log, self._tracing))]
        """From the outside in."""
        if not keys.any:
            loopback = settings.auth == "auto"
            self.middleware.append(Middleware(Origin, allowed=settings.cors_origins, fail_for=fail_for, loopback=loopback))
        if settings.cors_origins:
            self.middleware.append(
                Middleware(
                    CORSMiddleware,
                    allow_origins=settings.cors_origins,
                    allow_methods=("GET", "POST"),
                    allow_headers=("*",),
                    expose_headers=EXPOSED,
                )
            )
        if keys.any:
            exempt = (*NO_KEY, *(path for door in doors for path in door.public))
            self.middleware.append(Middleware(Auth, keys=keys, limits=self._limits, exempt=exempt, fail_for=fail_for))

    async def close(self) -> None:
        """Send what traces are left, and let go of connections."""
        await self._limits.close()
        if self._tracing:
            await asyncio.to_thread(self._tracing.close)


def _keys(settings: Settings) -> Keys:
    path = Path(settings.keys_file) if settings.keys_file else None
    if path:
        KeyFile(path).read()  # at the start a mistake is better told than served with
    keys = Keys(settings.api_keys, path)
    if keys.any and settings.auth == "none":
        raise SettingsError("there are keys, but auth is `none`: leave out one of them")
    return keys
