"""The middleware around every request, by the operator's settings: observability, origins, API keys."""

import asyncio
from collections.abc import Collection
from pathlib import Path

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from llava_gateway.auth.api_keys import KeyFile, KeyFileError, Keys
from llava_gateway.auth.rate_limits import RateLimits
from llava_gateway.http.middleware.auth import AuthMiddleware
from llava_gateway.http.middleware.observability import ObservabilityMiddleware, Recorder
from llava_gateway.http.middleware.origin import OriginMiddleware
from llava_gateway.http.response import FindErrorRenderer
from llava_gateway.observability.tracing import Tracing
from llava_gateway.observability.usage_log import UsageLog
from llava_gateway.settings import Settings, SettingsError

EXPOSED = (
    *("x-request-id", "retry-after"),
    *(f"x-ratelimit-{value}-{what}" for value in ("limit", "remaining", "reset") for what in ("requests", "tokens")),
)
"""Headers that pages of `--cors-origins` may read."""


class MiddlewareStack:
    """The middleware, and the connections that it holds open."""

    def __init__(self, settings: Settings, exempt_paths: Collection[str], find_error_renderer: FindErrorRenderer) -> None:
        """`exempt_paths`: paths that need no API key. `find_error_renderer`: renders an error by its path. Raises SettingsError."""
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
        self.middleware = [
            Middleware(ObservabilityMiddleware, find_error_renderer=find_error_renderer, recorder=Recorder(usage_log, self._tracing))
        ]
        """The outermost first."""
        if not keys.any:
            loopback = settings.auth == "auto"
            self.middleware.append(
                Middleware(OriginMiddleware, allowed=settings.cors_origins, find_error_renderer=find_error_renderer, loopback=loopback)
            )
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
            self.middleware.append(
                Middleware(AuthMiddleware, keys=keys, limits=self._limits, exempt=exempt_paths, find_error_renderer=find_error_renderer)
            )

    async def close(self) -> None:
        """Send the traces that are left, and close the connections."""
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
