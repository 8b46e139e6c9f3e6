"""Waiting for what is to become so."""

import time
from collections.abc import Callable
from typing import Any


def wait_for(condition: Callable[[], Any], seconds: float = 20, why: Callable[[], str] = str) -> float:
    """Seconds until it was so. `why`: what is said if it is not."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, f"not within {seconds} s\n{why()}"
        time.sleep(0.05)
    return time.monotonic() - start
