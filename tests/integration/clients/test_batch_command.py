"""`llava-gateway batch` with the real engine: every line of the input is answered once and correctly, even after kills."""

import random
import signal
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers.batch import batch, line, read, said, start, write
from helpers.requests import MODEL, image_part
from helpers.server import ROOT, Server
from helpers.waiting import json_lines, wait_for

from llava_gateway.demo.images import Grid, data_uri, describe, draw, encode, random_grid

FIRST, SECOND = ("red", "blue", "green", "white"), ("yellow", "black", "orange", "purple")


def whole_lines(path: Path) -> bytes:
    """Return the content of an output up to its last line feed."""
    content = path.read_bytes() if path.exists() else b""
    return content[: content.rfind(b"\n") + 1]


def wait_for_lines(process: subprocess.Popen[str], path: Path, count: int) -> None:
    """Wait until an output has these lines, or its writer has finished."""
    wait_for(lambda: whole_lines(path).count(b"\n") >= count or process.poll() is not None, 300)
    assert process.poll() in (None, 0), process.communicate()


def about(number: int, grid: Grid, folder: Path) -> dict[str, Any]:
    """Return a line about an image of the grid, with a relative path, a path, a file: URL or a data: URI."""
    content = encode(draw(grid, (112, 112)))
    path = folder / "some images" / f"{number}.png"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    ways = (f"some images/{number}.png", str(path), path.as_uri(), data_uri(content))
    asked = line(f"image {number}", image_part(ways[number % len(ways)]), "Describe this image.", max_tokens=60)
    if number % 5 == 0:
        del asked["body"]["model"]  # the server's model is the default
    return asked


@pytest.mark.slow
def test_500_lines_survive_three_kills(server: Server, tmp_path: Path) -> None:
    rng = random.Random(0)
    grids = {f"image {number}": random_grid(rng) for number in range(500)}
    lines = write(tmp_path / "in.jsonl", [about(number, grid, tmp_path) for number, grid in enumerate(grids.values())])
    out, kept = tmp_path / "out.jsonl", b""
    for _ in range(3):
        with start(lines, out, "--base-url", server.v1) as process:
            wait_for_lines(process, out, kept.count(b"\n") + rng.randint(1, 100))
            process.kill()
        assert whole_lines(out).startswith(kept)
        kept = whole_lines(out)
    ended = batch(lines, out, "--base-url", server.v1)
    assert ended.returncode == 0, ended.stderr
    assert f"{500 - len(kept.splitlines())} done, 0 failed" in ended.stdout
    assert out.read_bytes().startswith(kept)
    assert {custom_id: said(entry) for custom_id, entry in read(out).items()} == {
        custom_id: describe([grid]) for custom_id, grid in grids.items()
    }


def test_torn_output_line_is_requested_again(server: Server, tmp_path: Path) -> None:
    lines = write(tmp_path / "in.jsonl", [line(name, "Hello", max_tokens=5) for name in "abc"])
    out = tmp_path / "out.jsonl"
    assert batch(lines, out, "--base-url", server.v1, "--concurrency", 1).returncode == 0
    whole = out.read_bytes()
    for cut in (1, len(whole.splitlines()[2]) - 1):
        out.write_bytes(whole[:-cut])
        ended = batch(lines, out, "--base-url", server.v1)
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.startswith("1 done")
        assert set(read(out)) == set("abc")
        assert out.read_bytes().startswith(b"".join(whole.splitlines(keepends=True)[:2]))


def test_failed_lines_can_be_retried(server: Server, tmp_path: Path) -> None:
    late = tmp_path / "late.png"
    lines = [
        line("good", "Hello", max_tokens=5),
        line("late", image_part("late.png"), "Describe this image."),
        line("folder", image_part("."), "Describe this image."),
        line("model", "Hello", model="no-such"),
        line("long", "word " * 6000),
        line("nonsense", {"type": "image_url", "image_url": 5}, messages=[5]),
    ]
    out = tmp_path / "out.jsonl"
    command = (write(tmp_path / "in.jsonl", lines), out, "--base-url", server.v1)
    ended = batch(*command)
    assert ended.returncode == 1
    assert "1 done, 5 failed" in ended.stdout
    assert "2 failed with picture_unreadable, first " in ended.stdout
    found = read(out)
    assert {name: entry["error"] and entry["error"]["code"] for name, entry in found.items()} == {
        "good": None,
        "late": "picture_unreadable",
        "folder": "picture_unreadable",
        "model": "model_not_found",
        "long": "context_length_exceeded",
        "nonsense": "invalid_request_error",
    }
    assert found["late"]["error"]["message"] == "late.png: No such file or directory"
    assert found["late"]["response"] is None
    assert found["model"]["response"]["status_code"] == 404
    assert found["model"]["response"]["body"]["error"]["message"] == found["model"]["error"]["message"]
    before = out.read_bytes()
    again = batch(*command)
    assert again.returncode == 1
    assert "--retry-failed" in again.stdout
    assert out.read_bytes() == before
    late.write_bytes(encode(draw(FIRST)))
    anew = batch(*command, "--retry-failed")
    assert anew.returncode == 1
    assert "1 done, 4 failed" in anew.stdout
    assert said(read(out)["late"]) == describe([FIRST])
    assert read(out)["good"] == found["good"]
    assert set(read(out)) == set(found)
    assert not list(tmp_path.glob(".*"))


def test_folder_of_images_is_described(server: Server, tmp_path: Path) -> None:
    for name, grid in (("a.png", FIRST), ("b [1].png", SECOND)):
        (tmp_path / name).write_bytes(encode(draw(grid)))
    (tmp_path / "c.png").mkdir()
    out = tmp_path / "out.jsonl"
    flags = ("--prompt", "Describe this image.", "--max-tokens", 60, "--temperature", 0, "--base-url", server.v1)
    ended = batch(out, "--images", tmp_path / "*.png", tmp_path / "b [1].png", *flags)
    assert ended.returncode == 0, ended.stderr
    assert {Path(name).name: said(entry) for name, entry in read(out).items()} == {
        "a.png": describe([FIRST]),
        "b [1].png": describe([SECOND]),
    }
    other = batch(out, "--images", tmp_path / "*.png", *flags, "--prompt", "Is it red?")
    assert other.returncode == 2
    assert "asked something else before" in other.stderr
    assert len(read(out)) == 2


def test_questions_of_llavas_evaluation_are_answered(server: Server, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name, grid in (("first.png", FIRST), ("second.png", SECOND)):
        (tmp_path / "images" / name).write_bytes(encode(draw(grid)))
    asked = [
        {"question_id": 1, "image": "first.png", "text": "Describe this image.", "category": "detail"},
        {"question_id": 2, "image": "second.png", "text": "Describe this image."},
        {"question_id": 2, "image": "second.png", "text": "What color is the bottom right?"},
    ]
    questions, answers = write(tmp_path / "questions.jsonl", asked), tmp_path / "answers.jsonl"
    ended = batch(questions, answers, "--image-folder", tmp_path / "images", "--temperature", 0, "--base-url", server.v1)
    assert ended.returncode == 0, ended.stderr
    found = json_lines(answers)
    assert [(each["question_id"], each["text"], each["model_id"]) for each in found] == [
        (1, describe([FIRST]), MODEL),
        (2, describe([SECOND]), MODEL),
        (2, f"{SECOND[3].capitalize()}.", MODEL),
    ]


def test_batch_example_runs(server: Server, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    assert batch(ROOT / "examples" / "batch.jsonl", out, "--base-url", server.url).returncode == 0
    answers = {name: said(entry) for name, entry in read(out).items()}
    assert answers == {"first": describe([FIRST]), "both": describe([FIRST, SECOND]), "plain": describe([SECOND])}


@pytest.mark.slow
def test_batch_with_its_own_engine_stops_at_ctrl_c_and_goes_on(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAVA_API_KEYS", "for others")
    lines = write(tmp_path / "in.jsonl", [about(number, FIRST, tmp_path) for number in range(60)])
    out = tmp_path / "out.jsonl"
    with start(lines, out, "--model", MODEL, "--max-num-seqs", 2) as process:
        wait_for_lines(process, out, 1)
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr
        complaint = process.stderr.read()
    assert "the same command goes on" in complaint
    assert "Traceback" not in complaint
    assert not psutil.wait_procs(children, timeout=30)[1]
    kept = whole_lines(out)
    assert kept.count(b"\n") < 60
    ended = batch(lines, out, "--base-url", server.v1)
    assert ended.returncode == 0, ended.stderr
    assert out.read_bytes().startswith(kept)
    assert [said(entry) for entry in read(out).values()] == [describe([FIRST])] * 60
