"""Around every request: an `x-request-id` on the response, a line in the log, a count in the metrics; and an answer to what nobody has
foreseen. Never a body, never a key."""

import logging
import re
import time
import uuid

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llava_gateway import metrics
from llava_gateway.errors import GatewayError
from llava_gateway.web.reply import Fail, Reply

log = logging.getLogger(__name__)

PRINTABLE_ID = re.compile(r"[\x21-\x7e]{1,128}")
CLIENT_LEFT = 499
"""As nginx counts a client that closed the connection before its answer began."""
QUIET = ("/health", "/ready", "/metrics")


class Observe:
    """Pure ASGI middleware."""

    def __init__(self, app: ASGIApp, fail: Fail) -> None:
        """`fail` renders the error of a request that went wrong in a way that nobody has foreseen."""
        self.app = app
        self.fail = fail

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = _request_id(scope)
        status = CLIENT_LEFT
        start = time.perf_counter()

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self.app(scope, receive, observed)
        except Exception:
            log.exception("request %s failed", request_id)
            reply = Reply(observed, started=status != CLIENT_LEFT)
            await self.fail(GatewayError("The server failed on this request; its log says more."), reply)
        finally:
            route = getattr(scope.get("route"), "path", "unknown")
            metrics.HTTP_REQUESTS.labels(route, str(status)).inc()
            level = logging.DEBUG if route in QUIET else logging.INFO
            log.log(level, "%s %s %d %.3f s %s", scope["method"], route, status, time.perf_counter() - start, request_id)


def _request_id(scope: Scope) -> str:
    """The client's own id if it is short and printable, else a new one."""
    given = Headers(scope=scope).get("x-request-id", "")
    return given if PRINTABLE_ID.fullmatch(given) else uuid.uuid4().hex
