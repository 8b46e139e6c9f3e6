"""OpenTelemetry spans, with the extra `otel`: one span for a request and one for each of its stages."""

import time
from typing import TYPE_CHECKING

from starlette.datastructures import Headers

from llava_gateway import __version__
from llava_gateway.observability.context import RequestContext

if TYPE_CHECKING:
    from opentelemetry.trace import Span


class Tracing:
    """Sends spans to a collector, in batches and in the background."""

    def __init__(self, endpoint: str) -> None:
        """`endpoint`: the collector's URL for OTLP over HTTP. Raises ImportError without the extra `otel`."""
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        resource = Resource.create({"service.name": "llava-gateway", "service.version": __version__})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        self._tracer = self._provider.get_tracer("llava_gateway")
        self._context = TraceContextTextMapPropagator()
        self._clock_offset = time.time_ns() - time.perf_counter_ns()

    def begin(self, context: RequestContext, headers: Headers) -> "Span":
        """Start the span of a request, and set `context.trace` for the calls that the request makes.

        The span is a child of the client's span if the headers have a `traceparent`.
        """
        from opentelemetry.trace import SpanKind, set_span_in_context

        span = self._tracer.start_span("request", context=self._context.extract(dict(headers)), kind=SpanKind.SERVER)
        carrier: dict[str, str] = {}
        self._context.inject(carrier, context=set_span_in_context(span))
        context.trace = carrier.get("traceparent")
        return span

    def end(self, span: "Span", context: RequestContext, method: str, route: str, status: int) -> None:
        """End the span of a request, and add a span for each stage."""
        from opentelemetry.trace import Status, StatusCode, set_span_in_context

        span.update_name(f"{method} {route}")
        span.set_attributes(
            {
                "http.request.method": method,
                "http.route": route,
                "http.response.status_code": status,
                "gen_ai.request.model": context.model,
                "gen_ai.usage.input_tokens": context.usage.prompt_tokens,
                "gen_ai.usage.output_tokens": context.usage.completion_tokens,
                "llava.image_tokens": context.usage.image_tokens,
                "llava.video_tokens": context.usage.video_tokens,
            }
        )
        if context.code:
            span.set_attribute("error.type", context.code)
        if status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        for name, start, stop in context.stages:
            stage = self._tracer.start_span(name, context=set_span_in_context(span), start_time=self._epoch_ns(start))
            stage.end(self._epoch_ns(stop))
        span.end()

    def close(self) -> None:
        """Send the remaining spans. This takes seconds if the collector does not answer."""
        self._provider.shutdown()

    def _epoch_ns(self, moment: float) -> int:
        """Return a time of `time.perf_counter` as nanoseconds since the Unix epoch."""
        return int(moment * 1e9) + self._clock_offset
