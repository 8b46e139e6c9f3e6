"""The outermost middleware, which observes every request.

It puts an `x-request-id` and security headers on the response. When a request has ended, it writes a line in the log and a line in the
usage log, counts the request in the metrics and ends its trace span. It answers unexpected errors. It never records a body, a prompt or a
key.
"""

import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llava_gateway.errors import GatewayError
from llava_gateway.http.response import FindErrorRenderer, ResponseWriter
from llava_gateway.observability import metrics
from llava_gateway.observability.context import RequestContext, new_id, request_context
from llava_gateway.observability.tracing import Tracing
from llava_gateway.observability.usage_log import UsageLog

log = logging.getLogger("llava_gateway.requests")

PRINTABLE_ID = re.compile(r"[\x21-\x7e]{1,128}")
TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
CLIENT_CLOSED_REQUEST = 499
"""The status that nginx logs for a client that closed the connection before the response began."""
QUIET = ("/health", "/ready", "/metrics")
"""Routes whose requests are logged at the level `debug`."""
HEADERS = ((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"), (b"x-frame-options", b"DENY"))


@dataclass(slots=True)
class Record:
    """A request that is being recorded, with its context and its status."""

    context: RequestContext
    status: int = CLIENT_CLOSED_REQUEST


class Recorder:
    """Records each request in the log, the metrics, the usage log and the traces."""

    def __init__(self, usage_log: UsageLog | None, tracing: Tracing | None) -> None:
        self.usage_log = usage_log
        self.tracing = tracing

    @contextmanager
    def record(self, scope: Scope) -> Iterator[Record]:
        """Run the block as one request with a new context, and record the request when the block ends. The block sets `status`."""
        headers = Headers(scope=scope)
        method = scope.get("method", "WS")
        address, _ = scope.get("client") or ("", 0)
        record = Record(RequestContext(_request_id(headers), _trace(headers), address))
        start = time.perf_counter()
        span = self.tracing.begin(record.context, headers) if self.tracing else None
        try:
            with request_context(record.context):
                yield record
        finally:
            seconds = time.perf_counter() - start
            route = getattr(scope.get("route"), "path", "unknown")
            metrics.count(record.context, route, record.status, seconds)
            if self.usage_log and record.context.usage.prompt_tokens:
                self.usage_log.write(record.context, record.status, seconds)
            if self.tracing and span:
                self.tracing.end(span, record.context, method, route, record.status)
            _log(record.context, method, route, record.status, seconds)


class ObservabilityMiddleware:
    """Pure ASGI middleware. It puts the recorder into the scope of a WebSocket, whose endpoint records each message as a request."""

    def __init__(self, app: ASGIApp, find_error_renderer: FindErrorRenderer, recorder: Recorder) -> None:
        """`find_error_renderer`: its renderer answers a request that failed with an unexpected error."""
        self.app = app
        self.find_error_renderer = find_error_renderer
        self.recorder = recorder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app({**scope, "recorder": self.recorder}, receive, send)
            return
        with self.recorder.record(scope) as record:
            request_id = record.context.id.encode()

            async def send_with_headers(message: Message) -> None:
                if message["type"] == "http.response.start":
                    record.status = message["status"]
                    message["headers"] = [*message["headers"], (b"x-request-id", request_id), *HEADERS]
                await send(message)

            try:
                await self.app(scope, receive, send_with_headers)
            except Exception:
                log.exception("The request %s failed", record.context.id)
                record.context.code = "server_error"
                response = ResponseWriter(send_with_headers, started=record.status != CLIENT_CLOSED_REQUEST)
                error = GatewayError("The server failed on this request. The server's log has the details.")
                await self.find_error_renderer(scope)(error, response)


def _log(context: RequestContext, method: str, route: str, status: int, seconds: float) -> None:
    level = logging.DEBUG if route in QUIET else logging.INFO
    if not log.isEnabledFor(level):
        return
    fields: dict[str, object] = {"id": context.id}
    if context.key_name:
        fields["key"] = context.key_name
    if context.model:
        fields["model"] = context.model
    if context.code:
        fields["code"] = context.code
    usage = context.usage
    if usage.prompt_tokens:
        fields |= {
            "text_tokens": usage.text_tokens,
            "image_tokens": usage.image_tokens,
            "video_tokens": usage.video_tokens,
            "cached_tokens": usage.cached_tokens,
            "completion_tokens": usage.completion_tokens,
        }
    stages: dict[str, float] = {}
    for name, begin, end in context.stages:
        stages[name] = round(stages.get(name, 0.0) + end - begin, 4)
    if stages:
        fields["stages"] = stages
    if context.images:
        fields["images"] = context.images
    if context.videos:
        fields["videos"] = context.videos
    if context.trace:
        fields["traceparent"] = context.trace
    log.log(level, "%s %s %d %.3f s", method, route, status, seconds, extra={"fields": fields})


def _request_id(headers: Headers) -> str:
    """Return the client's `x-request-id` if it is short and printable, otherwise a new id."""
    request_id = headers.get("x-request-id", "")
    return request_id if PRINTABLE_ID.fullmatch(request_id) else new_id()


def _trace(headers: Headers) -> str | None:
    """Return the client's `traceparent` if it is valid (W3C Trace Context, section 3.2)."""
    traceparent = headers.get("traceparent", "")
    return traceparent if TRACEPARENT.fullmatch(traceparent) else None
