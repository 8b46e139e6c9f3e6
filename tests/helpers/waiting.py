"""Waits for events, each with a bound."""

import json
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any


def wait_for(condition: Callable[[], Any], seconds: float = 60, why: Callable[[], str] = str) -> float:
    """Wait until the condition holds, and return the waiting time in seconds.

    `seconds`: the bound. `why`: gives the message if the condition does not hold in time.
    """
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, f"not within {seconds} s\n{why()}"
        time.sleep(0.05)
    return time.monotonic() - start


def within(seconds: float, work: Callable[[], Any]) -> Any:
    """Return the result of the work, or raise its error. Fail if it does not end in time."""
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


def complete_lines(path: Path) -> list[str]:
    """Return the lines of a log that have their line feed: a reader may see the start of a line while the line is written."""
    return path.read_text().rpartition("\n")[0].splitlines() if path.exists() else []


def json_lines(path: Path) -> list[Any]:
    """Return the complete lines of a log that are JSON objects."""
    return [json.loads(line) for line in complete_lines(path) if line.startswith("{")]
