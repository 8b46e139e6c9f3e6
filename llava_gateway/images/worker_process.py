"""The process side of a worker: the limits of the operating system, and the loop of requests and responses.

The operating system kills the worker when a file takes too much CPU time. Requests and responses are lines of JSON on standard input and
output. The file and the pixels are passed in memory that the worker shares with the gateway. The worker ends when its input ends, and
therefore also when the gateway ends.
"""

import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

NICENESS = 10
"""On a busy machine the gateway, and an engine on the CPU, each get ten times as much CPU time as a worker."""


class Decoder(Protocol):
    """Opens and decodes one file at a time."""

    def handle(self, length: int | None, target: dict[str, Any] | None) -> dict[str, Any]:
        """Return a response: the `length` of the pixels in bytes and further values, or an `error` and its `code`.

        `length`: of the file in shared memory, in bytes; None for the file that was opened last. `target`: if given, the file is decoded
        and the pixels replace it in shared memory; otherwise it is only opened.
        """


def run(create: Callable[..., Decoder]) -> None:
    """Run the worker.

    The arguments of the process are a descriptor of shared memory, bytes of address space, CPU seconds, and further limits. `create`: gets
    the descriptor and the further limits.
    """
    shared, memory, cpu_seconds, limits = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), map(int, sys.argv[4:])
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(NICENESS)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # if memory runs out, the system kills this process and not the gateway
    decoder = create(shared, *limits)
    _write({})
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
        response = decoder.handle(**json.loads(line))
        signal.setitimer(signal.ITIMER_PROF, 0)
        _write(response)


def _write(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()
