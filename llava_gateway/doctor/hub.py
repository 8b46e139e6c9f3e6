"""Checks of the Hugging Face Hub: its cache on the disk, and whether it can be reached."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx

from llava_gateway.doctor.finding import Finding

TIMEOUT = 3.0
"""Seconds that the hub may take to answer."""
MIN_DISK = 20 * 10**9
"""Bytes that a model of 7 billion weights takes, with room for vLLM's own caches."""


def check_hub() -> Iterator[Finding]:
    """Yield the findings about the cache of the hub and about the hub. A server needs neither for models on the disk."""
    from huggingface_hub import constants, get_token

    yield check_cache(Path(constants.HF_HUB_CACHE))
    if constants.HF_HUB_OFFLINE:
        yield Finding("hub", "ok", "not asked, since HF_HUB_OFFLINE is set; only models in the cache can be served")
    else:
        yield check_reachable(constants.ENDPOINT, has_token=bool(get_token()))


def check_cache(cache: Path) -> Finding:
    """Return whether the cache of the hub can be written and has room. `cache`: a directory, which may not exist yet."""
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    text = f"{cache}, with {free / 1e9:.0f} GB free"
    if not os.access(existing, os.W_OK):
        return Finding("model cache", "note", f"{text}; it cannot be written", "set HF_HOME to a directory that can be written")
    if free < MIN_DISK:
        return Finding("model cache", "note", text, "llava-1.5-7b takes 14 GB; set HF_HOME to a larger disk")
    return Finding("model cache", "ok", text)


def check_reachable(endpoint: str, *, has_token: bool) -> Finding:
    """Return whether the hub answers. `endpoint`: its URL. `has_token`: whether a token for it is set."""
    token = "a token is set" if has_token else "no token is set, which only gated and private models need"
    try:
        httpx.head(endpoint, timeout=TIMEOUT)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        text = f"{endpoint} cannot be reached ({str(error) or type(error).__name__}); models on the disk can be served"
        return Finding("hub", "note", text)
    return Finding("hub", "ok", f"{endpoint} answers; {token}")
