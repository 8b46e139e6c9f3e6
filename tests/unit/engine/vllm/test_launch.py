"""The environment of vLLM's start, in folders with long names and with spaces."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from llava_gateway.engine.vllm import launch
from llava_gateway.engine.vllm.launch import ENVIRONMENT, FLASHINFER, MAX_SOCKET_FOLDER, SOCKET_FOLDER
from llava_gateway.engine.vllm.preload import PRELOAD, linked_preload
from llava_gateway.errors import EngineStartError


@pytest.mark.parametrize(("length", "chosen"), [(MAX_SOCKET_FOLDER, None), (MAX_SOCKET_FOLDER + 1, "/tmp")])
def test_long_folder_for_temporary_files_is_not_used_for_sockets(monkeypatch: pytest.MonkeyPatch, length: int, chosen: str | None) -> None:
    """The path of a Unix domain socket has at most 107 bytes. A longer path makes vLLM hang at its start."""
    monkeypatch.setattr(tempfile, "tempdir", "/" + "x" * (length - 1))
    monkeypatch.setenv(SOCKET_FOLDER, "")
    monkeypatch.delenv(SOCKET_FOLDER)
    launch._choose_socket_folder()
    assert os.environ.get(SOCKET_FOLDER) == chosen


def test_long_folder_of_the_operator_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SOCKET_FOLDER, "/" + "x" * MAX_SOCKET_FOLDER)
    with pytest.raises(EngineStartError, match=SOCKET_FOLDER):
        launch._choose_socket_folder()


def test_library_in_a_folder_with_a_space_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "my folder" / "libgomp.so.1"
    library.parent.mkdir()
    library.symlink_to(next(Path("/usr/lib").rglob("libz.so.1")).resolve())
    monkeypatch.setenv(PRELOAD, f"/nowhere:{library}")
    with linked_preload():
        paths = os.environ[PRELOAD].split(":")
        assert paths[0] == "/nowhere"
        assert Path(paths[1]).resolve() == library.resolve()
        command = [sys.executable, "-c", "print(open('/proc/self/maps').read())"]
        ended = subprocess.run(command, capture_output=True, text=True, check=True, env={PRELOAD: paths[1]})
    assert str(library.resolve()) in ended.stdout
    assert "ERROR" not in ended.stderr
    assert not Path(paths[1]).exists()


@pytest.mark.parametrize("value", ["", "/lib/a.so:/lib/b.so", "a.so b.so"])
def test_other_preloaded_libraries_are_left_as_they_are(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(PRELOAD, value)
    with linked_preload():
        assert os.environ[PRELOAD] == value


def program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(0o755)
    return path


@pytest.mark.parametrize(("compiler", "flashinfer"), [("", "0"), ("bin/nvcc", None), ("cuda/bin/nvcc", None)])
def test_kernels_that_must_be_compiled_are_used_only_with_a_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: str, flashinfer: str | None
) -> None:
    """Without CUDA's compiler, as in the container image, the first `top_p` would end the engine."""
    ninja = program(tmp_path / "venv" / "bin" / "ninja")
    monkeypatch.setattr(sys, "executable", str(ninja.with_name("python")))
    monkeypatch.setattr(launch, "CUDA", str(tmp_path / "cuda"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    for name in (FLASHINFER, "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    if compiler:
        program(tmp_path / compiler)
    launch._set_gpu_environment()
    assert os.environ["PATH"].split(os.pathsep) == [str(ninja.parent), str(tmp_path / "bin")]
    assert os.environ.get(FLASHINFER) == flashinfer


def test_engine_is_not_forked_from_the_gateway() -> None:
    """A forked engine would hold copies of clients' connections, which then stay open after the gateway has closed them."""
    assert ENVIRONMENT["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"
