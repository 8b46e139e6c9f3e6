"""The start of vLLM: its environment, in folders with long names and with spaces, and the size of the largest image and video."""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

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


@pytest.mark.parametrize(("video_frames", "context", "tokens"), [(32, 32768, 6273), (64, 32768, 64 * 196 + 1), (64, 16384, 41 * 196 + 1)])
def test_engine_accepts_the_longest_video_that_is_sampled(video_frames: int, context: int, tokens: int) -> None:
    """Otherwise requests with long videos wait for ever. vLLM itself makes room for 16 frames."""
    vision = SimpleNamespace(image_size=384, patch_size=14)
    hf_config = SimpleNamespace(model_type="llava_onevision", vision_config=vision, image_grid_pinpoints=[[384, 384]])
    scheduler = SimpleNamespace(encoder_cache_size=2048, max_num_encoder_input_tokens=2048)
    model_config = SimpleNamespace(hf_config=hf_config, max_model_len=context)
    config: Any = SimpleNamespace(model_config=model_config, scheduler_config=scheduler)
    launch._allow_largest_media(config, video_frames)
    assert (scheduler.encoder_cache_size, scheduler.max_num_encoder_input_tokens) == (tokens, tokens)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"count": 1, "num_frames": 32}),
        ({"video": 1, "image": 3}, {"count": 1, "num_frames": 32}),
        ({"video": {"count": 1, "num_frames": 8}}, {"count": 1, "num_frames": 8}),
    ],
)
def test_memory_is_measured_with_a_video_of_as_many_frames_as_are_sampled(given: dict[str, Any], expected: dict[str, int]) -> None:
    arguments = argparse.Namespace(limit_mm_per_prompt=given)
    launch._limit_test_video(arguments, 32)
    assert arguments.limit_mm_per_prompt == given | {"video": expected}


@pytest.mark.parametrize("given", [0, {"count": 0}])
def test_model_for_videos_does_not_start_without_videos(given: Any) -> None:
    with pytest.raises(EngineStartError, match="limit-mm-per-prompt"):
        launch._limit_test_video(argparse.Namespace(limit_mm_per_prompt={"video": given}), 32)


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
