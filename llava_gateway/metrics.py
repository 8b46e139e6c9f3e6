"""What Prometheus is told. Counters and histograms of the gateway; vLLM adds its own (`vllm:*`) to the same registry."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CONTENT_TYPE_LATEST, Counter, Gauge, Histogram, generate_latest

from llava_gateway.chat import Usage

HTTP_REQUESTS = Counter("llava_http_requests_total", "HTTP requests by route and status", ["route", "status"])
RUNNING = Gauge("llava_requests_running", "Requests that hold a place")
QUEUED = Gauge("llava_requests_queued", "Requests that wait for a place")
TOKENS = Counter("llava_tokens_total", "Tokens by kind: text and image of prompts, completion", ["kind"])
STAGE = Histogram(
    "llava_stage_seconds",
    "Where a request's time goes: queue, images, prompt, first_token (of streams), answer",
    ["stage"],
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
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


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Time one stage of a request, failed or not."""
    start = time.perf_counter()
    try:
        yield
    finally:
        STAGE.labels(name).observe(time.perf_counter() - start)


def count_usage(usage: Usage) -> None:
    TOKENS.labels("text").inc(usage.prompt_tokens - usage.image_tokens)
    TOKENS.labels("image").inc(usage.image_tokens)
    TOKENS.labels("completion").inc(usage.completion_tokens)


def exposition() -> tuple[bytes, str]:
    """The page that Prometheus reads, and its media type."""
    return generate_latest(), CONTENT_TYPE_LATEST
