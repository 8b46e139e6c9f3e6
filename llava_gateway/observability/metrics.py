"""What Prometheus is told. Counters and histograms of the gateway; vLLM adds its own (`vllm:*`) to the same registry."""

import asyncio
from collections.abc import Callable, Sequence
from functools import cache

from prometheus_client import Counter, Gauge, Histogram, generate_latest

from llava_gateway.observability.context import RequestContext

LOOP_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)

HTTP_REQUESTS = Counter("llava_http_requests_total", "HTTP requests by route and status", ["route", "status"])
DISCONNECTS = Counter("llava_client_disconnects_total", "Clients that left before their answer was whole")
REJECTIONS = Counter("llava_rejections_total", "Requests that ended with an error, by its code", ["reason"])
RUNNING = Gauge("llava_requests_running", "Requests that hold a place at the engine")
QUEUED = Gauge("llava_requests_queued", "Requests that wait for a place")
IN_FLIGHT = Gauge("llava_requests_inside", "Requests from before their body is read until their answer has left")
TASKS = Gauge("llava_tasks", "Tasks of the event loop")
LOOP_DELAY = Histogram(
    "llava_event_loop_delay_seconds",
    "How late a timer of the event loop runs that is due a hundred times a second",
    buckets=LOOP_BUCKETS,
)
LOOP_STALL = Histogram(
    "llava_event_loop_stall_seconds",
    "As llava_event_loop_delay_seconds, but at most the CPU time of the event loop's own thread: a busy machine is no stall",
    buckets=LOOP_BUCKETS,
)
BODY_BYTES = Gauge("llava_body_bytes", "Memory of request bodies")
ANSWER_BYTES = Gauge("llava_answer_bytes", "Memory that is reserved for answers until they have left")
ENGINE_UP = Gauge("llava_engine_up", "1 if the engine, each of them, has answered within the last seconds")
ENGINE_RESTARTS = Gauge("llava_engine_restarts", "How often the engine has died and come back")
TOKENS = Counter("llava_tokens_total", "Tokens by kind: text and image of prompts, completion", ["kind"])
KEY_REQUESTS = Counter("llava_key_requests_total", "Requests by the name of their key", ["key"])
KEY_TOKENS = Counter("llava_key_tokens_total", "Tokens by the name of the key and by kind", ["key", "kind"])
MODEL_REQUESTS = Counter("llava_model_requests_total", "Requests that reached the engine, by the name of the model or adapter", ["model"])
MODEL_TOKENS = Counter("llava_model_tokens_total", "Tokens by the name of the model or adapter, and by kind", ["model", "kind"])
USAGE_LOG_FAILURES = Counter("llava_usage_log_failures_total", "Requests that could not be written to the usage log")
STAGE = Histogram(
    "llava_stage_seconds",
    "Where a request's time goes: body, prompt (rendering), images (in all), fetch and decode (of one), queue, first_token (of streams), "
    "answer (from the engine's start to the last token), total",
    ["stage"],
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600),
)
INTER_TOKEN = Histogram(
    "llava_inter_token_seconds",
    "Mean time between two tokens of a stream; one observation for each",
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
)
IMAGES = Counter(
    "llava_images_total",
    "Images by where they came from: decoded, cached (prepared before), shared (being prepared for another request)",
    ["source"],
)
IMAGE_URLS = Counter(
    "llava_image_urls_total",
    "Image URLs by what they took: fetched, unchanged (asked, and not sent again), fresh (not asked), shared",
    ["source"],
)
IMAGE_CACHE_BYTES = Gauge("llava_image_cache_bytes", "Memory of prepared images")
IMAGE_FILE_BYTES = Gauge("llava_image_file_bytes", "Memory of image files that are being decoded or wait for that")
IMAGE_WORKERS = Gauge("llava_image_workers", "Processes that decode images whose cost is not known beforehand")
IMAGES_WAITING = Gauge("llava_images_waiting", "Images that wait for such a process")
IMAGE_WORKER_ENDS = Counter(
    "llava_image_worker_ends_total",
    "Such processes that ended before their image was decoded, by why: cpu (it took too much time), left (nobody waited any longer), "
    "busy (the machine took too long), died",
    ["cause"],
)
URL_CACHE_BYTES = Gauge("llava_url_cache_bytes", "Memory of what is known about image URLs")
# The registry takes a lock and makes a tuple to find what a few labels name.
_stage, _tokens_of, _http_requests = cache(STAGE.labels), cache(TOKENS.labels), cache(HTTP_REQUESTS.labels)
MAX_NAMES = 1000
"""Names of keys and of adapters that get a line of their own; more of them share `other`."""
_names: set[str] = set()


def watch(
    *,
    running: Callable[[], int],
    queued: Callable[[], int],
    in_flight: Callable[[], int],
    engine_restarts: Callable[[], int],
    engine_up: Callable[[], bool],
) -> None:
    """Read the gauges from these functions, each time that Prometheus asks."""
    RUNNING.set_function(running)
    QUEUED.set_function(queued)
    IN_FLIGHT.set_function(in_flight)
    TASKS.set_function(lambda: len(asyncio.all_tasks()))
    ENGINE_RESTARTS.set_function(engine_restarts)
    ENGINE_UP.set_function(engine_up)


def count(context: RequestContext, route: str, status: int, seconds: float) -> None:
    """A call that has ended, after so many seconds."""
    _http_requests(route, str(status)).inc()
    for name, begin, end in context.stages:
        _stage(name).observe(end - begin)
    if context.stages:
        _stage("total").observe(seconds)
    _count_inter_token(context)
    if context.code:
        REJECTIONS.labels(context.code).inc()
    tokens = _tokens(context)
    for kind, number in tokens:
        _tokens_of(kind).inc(number)
    if context.usage.prompt_tokens:
        model = _label(context.model)
        MODEL_REQUESTS.labels(model).inc()
        for kind, number in tokens:
            MODEL_TOKENS.labels(model, kind).inc(number)
    if context.key_name:
        key = _label(context.key_name)
        KEY_REQUESTS.labels(key).inc()
        for kind, number in tokens:
            KEY_TOKENS.labels(key, kind).inc(number)


async def exposition() -> bytes:
    """The page that Prometheus reads."""
    return generate_latest()


def _tokens(context: RequestContext) -> Sequence[tuple[str, int]]:
    usage = context.usage
    return (
        ("text", usage.prompt_tokens - usage.image_tokens),
        ("image", usage.image_tokens),
        ("completion", usage.completion_tokens),
    )


def _count_inter_token(context: RequestContext) -> None:
    ends = {name: end for name, _, end in context.stages}
    if "first_token" in ends and context.usage.completion_tokens > 1:
        INTER_TOKEN.observe((ends["answer"] - ends["first_token"]) / (context.usage.completion_tokens - 1))


def _label(name: str) -> str:
    if name not in _names and len(_names) >= MAX_NAMES:
        return "other"
    _names.add(name)
    return name
