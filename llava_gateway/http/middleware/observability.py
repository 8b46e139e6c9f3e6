"""Around every request: an `x-request-id` and security headers on the response, a line in the log, numbers in the metrics, a line in
the usage log, a trace; and an answer to what nobody has foreseen. Never a body, never a prompt, never a key."""

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
CLIENT_LEFT = 499
"""As nginx counts a client that closed the connection before its answer began."""
QUIET = ("/health", "/ready", "/metrics")
HEADERS = ((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"), (b"x-frame-options", b"DENY"))


@dataclass(slots=True)
class Record:
    context: RequestContext
    status: int = CLIENT_LEFT


class Recorder:
    """Writes down what there is to know of each request."""

    def __init__(self, usage_log: UsageLog | None, tracing: Tracing | None) -> None:
        self.usage_log = usage_log
        self.tracing = tracing

    @contextmanager
    def record(self, scope: Scope) -> Iterator[Record]:
        """Around a request, which gets a call of its own. Its status is the block's to set."""
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
    """Pure ASGI middleware, the outermost. Messages of a WebSocket are requests of their own: whoever answers them records them, with
    the recorder in the scope."""

    def __init__(self, app: ASGIApp, find_error_renderer: FindErrorRenderer, recorder: Recorder) -> None:
        """`fail_for`: for the error of a request that went wrong in a way that nobody has foreseen."""
        self.app = app
        self.find_error_renderer = find_error_renderer
        self.recorder = recorder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app({**scope, "recorder": self.recorder}, receive, send)
            return
        with self.recorder.record(scope) as record:
            request_id = record.context.id.encode()

            async def observed(message: Message) -> None:
                if message["type"] == "http.response.start":
                    record.status = message["status"]
                    message["headers"] = [*message["headers"], (b"x-request-id", request_id), *HEADERS]
                await send(message)

            try:
                await self.app(scope, receive, observed)
            except Exception:
                log.exception("request %s failed", record.context.id)
                record.context.code = "server_error"
                response = ResponseWriter(observed, started=record.status != CLIENT_LEFT)
                await self.find_error_renderer(scope)(GatewayError("The server failed on this request; its log says more."), response)


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
            "text_tokens": usage.prompt_tokens - usage.image_tokens,
            "image_tokens": usage.image_tokens,
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
    if context.trace:
        fields["traceparent"] = context.trace
    log.log(level, "%s %s %d %.3f s", method, route, status, seconds, extra={"fields": fields})


def _request_id(headers: Headers) -> str:
    """The client's own id if it is short and printable, else a new one."""
    given = headers.get("x-request-id", "")
    return given if PRINTABLE_ID.fullmatch(given) else new_id()


def _trace(headers: Headers) -> str | None:
    given = headers.get("traceparent", "")
    return given if TRACEPARENT.fullmatch(given) else None
