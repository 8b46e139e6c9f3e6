"""A process that outlives the gateway by a moment: vLLM's processes do not notice when theirs is killed, and would hold their memory
and their GPUs for good. It reads a line `PID START` for each of them, and when the pipe closes, however that came, kills those left."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil


class ProcessGuard:
    """Runs this file as a process of its own, apart from the terminal's and the service manager's signals to this one."""

    def __init__(self) -> None:
        self._told: set[int] = set()
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-I", "-S", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def watch(self, pids: list[int]) -> None:
        """These are to end with this process."""
        assert self._process.stdin
        for pid in set(pids) - self._told:
            self._told.add(pid)
            if start := start_time(pid):
                with suppress(BrokenPipeError):  # somebody has ended it
                    self._process.stdin.write(f"{pid} {start}\n".encode())
                    self._process.stdin.flush()

    def close(self) -> None:
        """No process is left to end."""
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait()


def start_time(pid: int) -> str:
    """Field 22 of proc(5)'s stat, which no later process of the same number shares; empty if there is no such process."""
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
    left = [int(pid) for pid, start in watched if start_time(int(pid)) == start]
    for pid in left:  # grows by the children, whose parents are still there to name them
        left += [child for child in _children(pid) if child not in left]
    for pid in left:
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    _main()


def engine_processes() -> list[psutil.Process]:
    """vLLM's processes: by name, since an app around this one may have others, and theirs."""
    ours = [child for child in multiprocessing.active_children() if child.name.startswith(("EngineCore", "VLLM_", "VllmWorker"))]
    processes = []
    for child in ours:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(child.pid)
            processes += [process, *process.children(recursive=True)]
    return processes


def kill(processes: list[psutil.Process], patience: float) -> None:
    """Wait `patience` seconds for the processes to end by themselves, then kill them."""
    if not processes:
        return
    _, alive = psutil.wait_procs(processes, timeout=patience)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=3)
