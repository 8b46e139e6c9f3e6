"""The engine's process that starts before vLLM is imported: it runs vLLM's function, or ends and lets vLLM create its own."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import Queue, get_context
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers.waiting import wait_for

from llava_gateway.engine.vllm import early_process
from llava_gateway.engine.vllm.compat import engine_process, health
from llava_gateway.engine.vllm.early_process import EarlyProcess
from llava_gateway.engine.vllm.preload import PRELOAD

pytestmark = pytest.mark.slow

VARIABLES = {"LLAVA_TEST_EARLY": "1", PRELOAD: "/nowhere/early.so"}


def write(path: str, text: str) -> None:
    """Stands for the function of vLLM's engine."""
    Path(path).write_text(f"{text} {os.environ.get('LLAVA_TEST_EARLY')} {os.environ.get('LLAVA_TEST_LATE')}")


def fail() -> None:
    raise ValueError("bad weights")


@pytest.fixture(autouse=True)
def no_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes import no module, and vLLM's own functions are replaced."""
    monkeypatch.setattr(early_process, "is_plain", lambda flags: True)
    monkeypatch.setattr(early_process, "unused_modules", lambda flags: [])
    monkeypatch.setattr(engine_process, "MODULES", ())
    monkeypatch.setattr(engine_process, "variables", lambda: VARIABLES)
    monkeypatch.setattr(engine_process, "is_single_process", lambda config: True)
    monkeypatch.setenv("LLAVA_TEST_EARLY", "1")
    monkeypatch.setenv(PRELOAD, VARIABLES[PRELOAD])


@pytest.fixture
def created(monkeypatch: pytest.MonkeyPatch) -> list[engine_process.Create]:
    """The function that vLLM would ask for the engine's process, once it is offered."""
    found: list[engine_process.Create] = []

    @contextmanager
    def offer(create: engine_process.Create) -> Iterator[None]:
        found.append(create)
        yield

    monkeypatch.setattr(engine_process, "offer", offer)
    return found


@pytest.fixture
def early() -> Iterator[EarlyProcess]:
    process = EarlyProcess([])
    process.start(None)
    yield process
    process.close()
    health.kill(health.engine_processes(), timeout=0)


def run(early: EarlyProcess, created: list[engine_process.Create], function: Callable[..., None], arguments: dict[str, Any]) -> Any:
    with early.offered(None):
        return created[0](function, arguments)


def test_process_runs_the_function_with_late_variables(
    early: EarlyProcess, created: list[engine_process.Create], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAVA_TEST_LATE", "2")
    process = run(early, created, write, {"path": str(tmp_path / "out"), "text": "ran"})
    process.start()  # as vLLM does with each process that it has created
    early.close()  # as at the end of the start: the process is vLLM's now
    process.join(60)
    assert process.exitcode == 0
    assert (tmp_path / "out").read_text() == "ran 1 2"


def test_error_in_the_function_ends_the_process_with_a_failure(early: EarlyProcess, created: list[engine_process.Create]) -> None:
    process = run(early, created, fail, {})
    process.join(60)
    assert process.exitcode == 1


def test_dead_process_is_not_used(early: EarlyProcess, created: list[engine_process.Create]) -> None:
    """The process may die before it gets its function, for instance because the system has no memory left."""
    (waiting,) = health.engine_processes()
    waiting.kill()
    waiting.wait(60)
    assert run(early, created, write, {}) is None
    assert not health.engine_processes()


def test_process_is_not_used_for_arguments_that_only_a_new_process_can_take(
    early: EarlyProcess, created: list[engine_process.Create]
) -> None:
    queue: Queue[int] = get_context("spawn").Queue()
    assert run(early, created, write, {"tensor_queue": queue}) is None
    assert not health.engine_processes()


@pytest.mark.parametrize("name", VARIABLES)
def test_process_with_another_environment_is_not_used(
    early: EarlyProcess, created: list[engine_process.Create], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "other")
    assert run(early, created, write, {}) is None
    assert not health.engine_processes()


def test_process_is_not_used_for_several_processes(
    early: EarlyProcess, created: list[engine_process.Create], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_process, "is_single_process", lambda config: False)
    assert run(early, created, write, {}) is None
    assert not health.engine_processes()


def test_failed_start_leaves_no_process(early: EarlyProcess) -> None:
    (waiting,) = health.engine_processes()
    early.close()
    assert not waiting.is_running()
    assert not health.engine_processes()


def test_process_that_cannot_be_created_is_left_to_vllm(created: list[engine_process.Create], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise BlockingIOError("no process left")

    monkeypatch.setattr("multiprocessing.util.spawnv_passfds", refuse)
    process = EarlyProcess([])
    process.start(None)
    assert run(process, created, write, {}) is None
    assert os.environ[PRELOAD] == VARIABLES[PRELOAD]
    process.close()


def test_flags_for_several_processes_start_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(early_process, "is_plain", lambda flags: False)
    process = EarlyProcess(["--tensor-parallel-size", "2"])
    process.start("llava")
    assert not health.engine_processes()
    process.close()


def test_variables_of_the_gateway_are_left_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other processes of the gateway, such as decoders of images, need none of the engine's libraries."""
    monkeypatch.delenv(PRELOAD)
    before = dict(os.environ)
    process = EarlyProcess([])
    process.start(None)
    try:
        assert dict(os.environ) == before
        (waiting,) = health.engine_processes()
        wait_for(lambda: waiting.environ().get(PRELOAD) == VARIABLES[PRELOAD])
    finally:
        process.close()


KILLED = """
from llava_gateway.engine.vllm import early_process
from llava_gateway.engine.vllm.compat import engine_process
early_process.is_plain = lambda flags: True
engine_process.MODULES = ()
engine_process.variables = dict
if __name__ == "__main__":
    process = early_process.EarlyProcess([])
    process.start(None)
    print(process._process.pid, flush=True)
    input()
"""


def test_waiting_process_ends_with_a_killed_gateway(tmp_path: Path) -> None:
    """The process guard may not know the process yet."""
    (tmp_path / "gateway.py").write_text(KILLED)
    with subprocess.Popen([sys.executable, tmp_path / "gateway.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as gateway:
        assert gateway.stdout
        waiting = psutil.Process(int(gateway.stdout.readline()))
        gateway.send_signal(signal.SIGKILL)
        assert not psutil.wait_procs([waiting], timeout=60)[1]
