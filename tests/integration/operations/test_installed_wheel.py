"""A wheel that is installed outside of the repository, with the real engine: `doctor` and `serve`."""

import json
import subprocess
from pathlib import Path

import pytest
from helpers import package
from helpers.requests import body, image
from helpers.server import HTTP, free_port, serve

from llava_gateway.demo.images import describe

pytestmark = pytest.mark.engine

GRID = ("red", "blue", "green", "white")


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the wheel and with vLLM."""
    _, wheel = package.build(tmp_path_factory.mktemp("dist"))
    return package.environment(tmp_path_factory.mktemp("environment"), wheel, engine=True) / "python"


@pytest.fixture(autouse=True)
def _outside_of_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.chdir(tmp_path)


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


def test_installed_server_answers_about_an_image(python: Path, tmp_path: Path) -> None:
    imported = Path(run(python, "-c", "import llava_gateway; print(llava_gateway.__file__)").stdout)
    assert imported.is_relative_to(python.parents[1])
    with serve(tmp_path, python=str(python)) as server:
        completion = HTTP.post(f"{server.v1}/chat/completions", json=body(image(GRID), "Describe this image.")).json()
        assert completion["choices"][0]["message"]["content"] == describe([GRID])
        assert "<!doctype html>" in HTTP.get(server.url, headers={"accept": "text/html"}).text.lower()


def test_doctor_finds_no_fault_where_a_server_starts(python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("LLAVA_PORT", str(free_port()))
    ended = run(python.parent / "llava-gateway", "doctor", "--json")
    assert ended.returncode == 0, ended.stdout
    assert {finding["level"] for finding in json.loads(ended.stdout)["findings"] if finding["name"] == "vLLM"} == {"ok"}
