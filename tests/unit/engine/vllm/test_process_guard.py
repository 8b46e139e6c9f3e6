"""vLLM's processes are found, and end with the gateway."""

import subprocess
import time
from concurrent.futures import Future
from multiprocessing import get_context
from typing import Any

import psutil
import pytest

from llava_gateway.engine.vllm.compat import health
from llava_gateway.engine.vllm.engine import VllmEngine
from llava_gateway.engine.vllm.process_guard import ProcessGuard

pytestmark = pytest.mark.slow


def test_processes_are_found_by_name_with_their_children() -> None:
    context = get_context("spawn")
    ours, other = (context.Process(target=subprocess.run, args=(["sleep", "60"],), name=name) for name in ("EngineCore_DP0", "other"))
    for process in (ours, other):
        process.start()
    try:
        for _ in range(300):
            if psutil.Process(ours.pid).children():
                break
            time.sleep(0.1)
        found = health.engine_processes()
        assert found[0].pid == ours.pid
        assert "sleep" in [process.name() for process in found]
        assert other.pid not in [process.pid for process in found]
        health.kill(found, timeout=0)
        assert not any(process.is_running() for process in found)
    finally:
        health.kill([process for pid in (ours.pid, other.pid) for process in family(pid)], timeout=0)


def family(pid: int | None) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def test_the_guard_runs_without_site_packages_and_ends_what_it_was_told() -> None:
    """vLLM's processes must not outlive a gateway that was killed."""
    with subprocess.Popen(["sleep", "60"]) as orphan:
        guard = ProcessGuard()
        guard.watch([orphan.pid])
        assert guard._process.poll() is None
        guard.close()
        assert guard._process.returncode == 0
        assert orphan.wait(10) < 0


def test_worker_that_outlives_its_engine_has_ended_before_the_next_engine_starts() -> None:
    """Otherwise the next engine would find the memory of its GPU in use. The engine's other processes are no longer found by its name."""
    engine = VllmEngine("model")
    loading: Future[Any] = Future()
    loading.set_result(None)
    with subprocess.Popen(["sleep", "60"]) as worker:
        engine._processes = [psutil.Process(worker.pid)]
        engine._shut_down(loading)
        assert not psutil.pid_exists(worker.pid)
    engine._process_guard.close()
