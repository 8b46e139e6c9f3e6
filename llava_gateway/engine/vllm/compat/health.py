"""Whether vLLM's engine lives, and the processes that it runs in.

Read in vLLM 0.32.0.
"""

import contextlib
import multiprocessing
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

PROCESS_NAMES = ("EngineCore", "VLLM_", "VllmWorker")
"""How the names begin that vLLM gives its processes: the engine, the coordinator of data parallelism, and the workers."""


KILL_TIMEOUT = 10
"""Seconds that killed processes may take to end. The driver of a GPU first frees their memory, which the next engine needs."""


def is_dead(engine: "AsyncLLM") -> bool:
    """Return whether vLLM has noticed that its engine's process has ended, or whether its own output loop has.

    Touches: `AsyncLLM.errored`.
    Without it: `AsyncLLM.check_health` raises `EngineDeadError` in the same case, but has to be awaited.
    """
    return bool(engine.errored)


async def ping(engine: "AsyncLLM") -> None:
    """Return when the engine's own loop has answered. An engine that hangs never answers.

    `AsyncLLM.check_health` does not ask the engine's process, so it passes while the engine hangs.

    Touches: `AsyncLLM.is_paused`, which is a question that the engine's process has to answer and that changes nothing there.
    Without it: any other harmless question, such as `AsyncLLM.list_loras`.
    """
    await engine.is_paused()


def engine_processes() -> list[psutil.Process]:
    """Return vLLM's processes and all their children. An application around the gateway may have other processes, which are left out.

    Touches: the names of vLLM's processes (`PROCESS_NAMES`).
    Without it: `llava-gateway serve` could take all its child processes for vLLM's; an app that mounts the gateway could not.
    """
    processes = []
    for child in multiprocessing.active_children():
        if child.name.startswith(PROCESS_NAMES):
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(child.pid)
                processes += [process, *process.children(recursive=True)]
    return processes


def kill(processes: list[psutil.Process], timeout: float) -> None:
    """Wait `timeout` seconds for the processes to end by themselves, and kill the others."""
    if not processes:
        return
    _, alive = psutil.wait_procs(processes, timeout=timeout)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=KILL_TIMEOUT)
