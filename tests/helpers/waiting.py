"""Waiting for what is to become so."""

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any


def wait_for(condition: Callable[[], Any], seconds: float = 20, why: Callable[[], str] = str) -> float:
    """Seconds until it was so. `why`: what is said if it is not."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, f"not within {seconds} s\n{why()}"
        time.sleep(0.05)
    return time.monotonic() - start


def within(seconds: float, work: Callable[[], Any]) -> Any:
    """What the work returns or raises. Fails if it does not end in time."""
    ended: list[Callable[[], Any]] = []

    def run() -> None:
        try:
            value = work()
            ended.append(lambda: value)
        except Exception as error:
            ended.append(partial(raise_, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert ended, f"not within {seconds} s"
    return ended[0]()


def raise_(error: Exception) -> None:
    raise error
