"""The middleware that the settings ask for: trailing slashes and observability around all, then origins or API keys, and CORS."""

import asyncio
from collections.abc import Collection
from pathlib import Path

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from llava_gateway.auth.api_keys import KeyFile, KeyFileError, Keys
from llava_gateway.auth.rate_limits import RateLimits
from llava_gateway.http.middleware.auth import AuthMiddleware
from llava_gateway.http.middleware.observability import ObservabilityMiddleware, Recorder
from llava_gateway.http.middleware.origin import OriginMiddleware
from llava_gateway.http.response import FindErrorRenderer
from llava_gateway.observability.tracing import Tracing
from llava_gateway.observability.usage_log import UsageLog
from llava_gateway.settings import Settings, SettingsError

EXPOSED_HEADERS = (
    *("x-request-id", "retry-after", "x-llava-tools"),
    *(f"x-ratelimit-{value}-{kind}" for value in ("limit", "remaining", "reset") for kind in ("requests", "tokens")),
)
"""The response headers that pages of `--cors-origins` may read."""


class TrailingSlashMiddleware:
    """Pure ASGI middleware that takes a path with one slash at its end for the path without it. The root path stays as it is.

    Some clients join their base URL and the path that way. Many clients do not follow a redirect, or send no body to its target.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope.get("path", "")
        if path.endswith("/") and not path.endswith("//") and path != scope.get("root_path", "") + "/":
            scope = {**scope, "path": path[:-1]}
        await self.app(scope, receive, send)


class MiddlewareStack:
    """The middleware of an app, and the connections that the middleware keeps open."""

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
            Middleware(TrailingSlashMiddleware),
            Middleware(ObservabilityMiddleware, find_error_renderer=find_error_renderer, recorder=Recorder(usage_log, self._tracing)),
        ]
        """For `Starlette(middleware=...)`, the outermost first."""
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
                    expose_headers=EXPOSED_HEADERS,
                )
            )
        if keys.any:
            self.middleware.append(
                Middleware(AuthMiddleware, keys=keys, limits=self._limits, exempt=exempt_paths, find_error_renderer=find_error_renderer)
            )

    async def close(self) -> None:
        """Send the remaining traces, and close the connections."""
        await self._limits.close()
        if self._tracing:
            await asyncio.to_thread(self._tracing.close)


def _keys(settings: Settings) -> Keys:
    """Return the keys of the settings. Raises KeyFileError, ValueError and SettingsError."""
    path = Path(settings.keys_file) if settings.keys_file else None
    if path:
        KeyFile(path).read()  # so that a faulty file is reported at the start
    keys = Keys(settings.api_keys, path)
    if keys.any and settings.auth == "none":
        raise SettingsError("there are API keys, but auth is `none`: remove one of the two settings")
    return keys
