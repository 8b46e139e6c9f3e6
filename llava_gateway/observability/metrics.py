"""The gateway's metrics for Prometheus. vLLM adds its own metrics (`vllm:*`) to the same registry."""

import asyncio
from collections.abc import Callable, Sequence
from functools import cache

from prometheus_client import Counter, Gauge, Histogram, generate_latest

from llava_gateway.observability.context import RequestContext

LOOP_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)

HTTP_REQUESTS = Counter("llava_http_requests_total", "HTTP requests by route and status", ["route", "status"])
DISCONNECTS = Counter("llava_client_disconnects_total", "Clients that disconnected before their answer was complete")
REJECTIONS = Counter("llava_rejections_total", "Requests that ended with an error, by its code", ["reason"])
RUNNING = Gauge("llava_requests_running", "Requests that run at the engine")
QUEUED = Gauge("llava_requests_queued", "Requests that wait for a slot at the engine")
IN_FLIGHT = Gauge("llava_requests_inside", "Requests in flight: from before the body is read until the answer has been sent")
TASKS = Gauge("llava_tasks", "Tasks of the event loop")
LOOP_DELAY = Histogram(
    "llava_event_loop_delay_seconds",
    "Delay of a timer of the event loop that is due a hundred times a second",
    buckets=LOOP_BUCKETS,
)
LOOP_STALL = Histogram(
    "llava_event_loop_stall_seconds",
    "Like llava_event_loop_delay_seconds, but at most the CPU time of the event loop's own thread, so that a busy machine is not a stall",
    buckets=LOOP_BUCKETS,
)
BODY_BYTES = Gauge("llava_body_bytes", "Memory of request bodies, in bytes")
ANSWER_BYTES = Gauge("llava_answer_bytes", "Memory that is reserved for answers until they have been sent, in bytes")
ENGINE_UP = Gauge("llava_engine_up", "1 if every engine has answered within the last seconds")
ENGINE_RESTARTS = Gauge("llava_engine_restarts", "Restarts of the engine after it has died")
FAST_PATHS = Gauge("llava_fast_path", "1 if the fast path is in use, 0 if vLLM's own path is: of tokens and of images", ["of"])
TOKENS = Counter("llava_tokens_total", "Tokens by kind: text and image (of prompts), completion", ["kind"])
KEY_REQUESTS = Counter("llava_key_requests_total", "Requests by the name of the API key", ["key"])
KEY_TOKENS = Counter("llava_key_tokens_total", "Tokens by the name of the API key, and by kind", ["key", "kind"])
MODEL_REQUESTS = Counter("llava_model_requests_total", "Requests that reached the engine, by the name of the model or adapter", ["model"])
MODEL_TOKENS = Counter("llava_model_tokens_total", "Tokens by the name of the model or adapter, and by kind", ["model", "kind"])
USAGE_LOG_FAILURES = Counter("llava_usage_log_failures_total", "Requests that could not be written to the usage log")
STAGE = Histogram(
    "llava_stage_seconds",
    "Duration of a request's stages: body, prompt (rendering), images (all), fetch and decode (of one image or video), queue, "
    "first_token (of streams), answer (from the engine's start to the last token), total",
    ["stage"],
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600),
)
INTER_TOKEN = Histogram(
    "llava_inter_token_seconds",
    "Mean time between two tokens of a stream; one observation per stream",
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
)
IMAGES = Counter(
    "llava_images_total",
    "Images by source: decoded, cached (prepared earlier), shared (being prepared for another request)",
    ["source"],
)
IMAGE_URLS = Counter(
    "llava_image_urls_total",
    "Image URLs by source: fetched, unchanged (requested, but not sent again), fresh (not requested), shared (with another request)",
    ["source"],
)
IMAGE_CACHE_BYTES = Gauge("llava_image_cache_bytes", "Memory of prepared images, in bytes")
IMAGE_FILE_BYTES = Gauge("llava_image_file_bytes", "Memory of image and video files that are being decoded or wait for it, in bytes")
IMAGE_WORKERS = Gauge("llava_image_workers", "Processes that decode images whose cost is not known in advance")
IMAGES_WAITING = Gauge("llava_images_waiting", "Images that wait for one of llava_image_workers")
IMAGE_WORKER_ENDS = Counter(
    "llava_image_worker_ends_total",
    "Processes of llava_image_workers that ended before their image was decoded, by cause: cpu (too much CPU time), "
    "left (no request waited any longer), busy (the machine was too slow), died",
    ["cause"],
)
VIDEOS = Counter(
    "llava_videos_total",
    "Videos by source: decoded, cached (prepared earlier), shared (being prepared for another request)",
    ["source"],
)
VIDEO_URLS = Counter(
    "llava_video_urls_total",
    "Video URLs by source: fetched, unchanged (requested, but not sent again), fresh (not requested), shared (with another request)",
    ["source"],
)
VIDEO_CACHE_BYTES = Gauge("llava_video_cache_bytes", "Memory of prepared videos, in bytes")
VIDEO_WORKERS = Gauge("llava_video_workers", "Processes that decode videos")
VIDEOS_WAITING = Gauge("llava_videos_waiting", "Videos that wait for one of llava_video_workers")
VIDEO_WORKER_ENDS = Counter(
    "llava_video_worker_ends_total",
    "Processes of llava_video_workers that ended before their video was decoded, by cause: cpu (too much CPU time), "
    "left (no request waited any longer), busy (the machine was too slow), died",
    ["cause"],
)
URL_CACHE_BYTES = Gauge("llava_url_cache_bytes", "Memory of the cache of image URLs, in bytes")
# Cached, because `labels` takes a lock and makes a tuple.
_stage, _tokens_of, _http_requests = cache(STAGE.labels), cache(TOKENS.labels), cache(HTTP_REQUESTS.labels)
MAX_NAMES = 1000
"""The upper bound of different names of keys, models and adapters in labels. Further names are counted as `other`."""
_names: set[str] = set()


def watch(
    *,
    running: Callable[[], int],
    queued: Callable[[], int],
    in_flight: Callable[[], int],
    engine_restarts: Callable[[], int],
    engine_up: Callable[[], bool],
) -> None:
    """Read the gauges from these functions each time that Prometheus asks."""
    RUNNING.set_function(running)
    QUEUED.set_function(queued)
    IN_FLIGHT.set_function(in_flight)
    TASKS.set_function(lambda: len(asyncio.all_tasks()))
    ENGINE_RESTARTS.set_function(engine_restarts)
    ENGINE_UP.set_function(engine_up)


def count(context: RequestContext, route: str, status: int, seconds: float) -> None:
    """Count a request that has ended. `route`: the path's pattern. `seconds`: its duration."""
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
    """Return all metrics in Prometheus' text format."""
    return generate_latest()


def _tokens(context: RequestContext) -> Sequence[tuple[str, int]]:
    """Return the request's tokens by kind."""
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
    """Return the label's value for a name."""
    if name not in _names and len(_names) >= MAX_NAMES:
        return "other"
    _names.add(name)
    return name
