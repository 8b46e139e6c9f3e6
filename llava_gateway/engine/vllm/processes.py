"""The processes that vLLM starts: found, and ended when it does not end them itself."""

import contextlib
import multiprocessing

import psutil


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
