"""The process guard: a small process that ends vLLM's processes after the gateway's own process has ended, however it ended.

vLLM's processes do not notice when the gateway is killed. They would keep their memory and their GPUs for ever. The guard runs this file as
a script. It reads a line `PID START` for each process to end. When the gateway ends, the pipe closes, and the guard kills the processes
that are left. The script is started without site-packages, so this file imports the standard library alone.
"""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path


class ProcessGuard:
    """Starts the guard, in a session of its own: signals to the gateway from a terminal or a service manager do not reach it."""

    def __init__(self) -> None:
        self._watched: set[int] = set()
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-I", "-S", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def watch(self, pids: list[int]) -> None:
        """Have these processes end with the gateway. Processes that are watched already are skipped."""
        assert self._process.stdin
        for pid in set(pids) - self._watched:
            self._watched.add(pid)
            if start := start_time(pid):
                with suppress(BrokenPipeError):  # somebody has ended the guard
                    self._process.stdin.write(f"{pid} {start}\n".encode())
                    self._process.stdin.flush()

    def close(self) -> None:
        """End the guard, and every watched process that still runs."""
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait()


def start_time(pid: int) -> str:
    """Return the start time of a process: field 22 of `/proc/PID/stat`, see proc(5). Empty if there is no such process.

    No later process with the same number has the same start time.
    """
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]
    except OSError:
        return []


def _main() -> None:
    watched = [line.split() for line in sys.stdin]
    alive = [int(pid) for pid, start in watched if start_time(int(pid)) == start]
    for pid in alive:  # grows by the children, which are found only while their parents live
        alive += [child for child in _children(pid) if child not in alive]
    for pid in alive:
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    _main()
