"""Fixtures that all tests share."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.origin import Origin
from hypothesis import HealthCheck, settings

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "true"  # litellm otherwise asks a server on the internet for prices when it is imported

settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine must not fail a test
settings.register_profile("fast", settings.get_profile("busy"), max_examples=20)  # for `make test-fast`
settings.load_profile("busy")


PRELOAD = os.environ.get("LD_PRELOAD")


@pytest.fixture(autouse=True)
def own_preload() -> Iterator[None]:
    """Keep vLLM's libraries out of the processes that tests start.

    vLLM adds them to the variable in each process that reads an engine's configuration. The linker complains about a path with a space.
    """

    def reset() -> None:
        os.environ.pop("LD_PRELOAD", None)
        if PRELOAD is not None:
            os.environ["LD_PRELOAD"] = PRELOAD

    reset()
    yield
    reset()


@pytest.fixture(scope="session")
def origin() -> Iterator[Origin]:
    """An image server with good and bad responses."""
    with Origin() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Environment variables of a command with its own state folder. Commands of the test run in the folder above."""
    monkeypatch.chdir(tmp_path)
    terminal = {"TERM": "xterm", "NO_COLOR": "1", "LC_ALL": "C.UTF-8"}
    return os.environ | {"XDG_STATE_HOME": str(tmp_path / "state"), "OPENAI_API_KEY": "", "OPENAI_BASE_URL": ""} | terminal
