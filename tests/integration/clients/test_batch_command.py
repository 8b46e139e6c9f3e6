"""`llava-gateway batch` against the real engine: whatever ends it, every line is answered once, and truly."""

import fcntl
import http.server
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers.requests import MODEL, body, image_part
from helpers.server import ROOT, Server, free_port

from llava_gateway.cli.batch import main
from llava_gateway.client.remote import MAX_IMAGE_BYTES
from llava_gateway.demo.images import Grid, data_uri, describe, draw, encode, random_grid

FIRST, SECOND = ("red", "blue", "green", "white"), ("yellow", "black", "orange", "purple")
NOBODY = "http://127.0.0.1:9"


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "llava_gateway", "batch", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def batch(*arguments: object) -> subprocess.CompletedProcess[str]:
    with start(*arguments) as process:
        out, err = process.communicate(timeout=200)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What is said by a command that is refused before it asks anybody."""
    try:
        status = main([*map(str, arguments), "--base-url", NOBODY])
    except SystemExit as error:
        status = int(str(error.code))
    assert status == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    return said


def line(custom_id: str, *content: Any, **fields: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body(*content, **fields)}


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def read(path: Path) -> dict[str, dict[str, Any]]:
    """The lines of an output by custom_id, of which there is one each."""
    entries = [json.loads(text) for text in path.read_text().splitlines()]
    found = {entry["custom_id"]: entry for entry in entries}
    assert len(found) == len(entries)
    return found


def said(entry: dict[str, Any]) -> str:
    assert entry["error"] is None
    assert entry["response"]["status_code"] == 200
    (choice,) = entry["response"]["body"]["choices"]
    return str(choice["message"]["content"] if "message" in choice else choice["text"]).strip()


def whole_lines(path: Path) -> bytes:
    content = path.read_bytes() if path.exists() else b""
    return content[: content.rfind(b"\n") + 1]


def wait_for_lines(process: subprocess.Popen[str], path: Path, count: int) -> None:
    while whole_lines(path).count(b"\n") < count:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def about(number: int, grid: Grid, folder: Path) -> dict[str, Any]:
    """A line about a picture of the grid, named in one of the ways that there are."""
    picture = encode(draw(grid, (112, 112)))
    path = folder / "some pictures" / f"{number}.png"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(picture)
    ways = (f"some pictures/{number}.png", str(path), path.as_uri(), data_uri(picture))
    asked = line(f"picture {number}", image_part(ways[number % len(ways)]), "Describe this image.", max_tokens=60)
    if number % 5 == 0:
        del asked["body"]["model"]  # the server's then
    return asked


def test_500_lines_through_three_kills(server: Server, tmp_path: Path) -> None:
    rng = random.Random()
    grids = {f"picture {number}": random_grid(rng) for number in range(500)}
    lines = write(tmp_path / "in.jsonl", [about(number, grid, tmp_path) for number, grid in enumerate(grids.values())])
    out, kept = tmp_path / "out.jsonl", b""
    for _ in range(3):
        with start(lines, out, "--base-url", server.v1) as process:
            wait_for_lines(process, out, kept.count(b"\n") + rng.randint(1, 130))
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


def test_a_torn_line_is_asked_again(server: Server, tmp_path: Path) -> None:
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


def test_failures_are_lines_that_can_be_asked_anew(server: Server, tmp_path: Path) -> None:
    picture = tmp_path / "late.png"
    lines = [
        line("good", "Hello", max_tokens=5),
        line("late", image_part("late.png"), "Describe this image."),
        line("folder", image_part("."), "Describe this image."),
        line("model", "Hello", model="no-such"),
        line("long", "Hello", max_tokens=100_000),
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
    picture.write_bytes(encode(draw(FIRST)))
    anew = batch(*command, "--retry-failed")
    assert anew.returncode == 1
    assert "1 done, 4 failed" in anew.stdout
    assert said(read(out)["late"]) == describe([FIRST])
    assert read(out)["good"] == found["good"]
    assert set(read(out)) == set(found)
    assert not list(tmp_path.glob(".*"))


def test_a_folder_of_pictures(server: Server, tmp_path: Path) -> None:
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


def test_the_example(server: Server, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    assert batch(ROOT / "examples" / "batch.jsonl", out, "--base-url", server.url).returncode == 0
    answers = {name: said(entry) for name, entry in read(out).items()}
    assert answers == {"first": describe([FIRST]), "both": describe([FIRST, SECOND]), "plain": describe([SECOND])}


def test_an_engine_of_its_own_and_a_ctrl_c(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAVA_API_KEYS", "for others")
    lines = write(tmp_path / "in.jsonl", [about(number, FIRST, tmp_path) for number in range(60)])
    out = tmp_path / "out.jsonl"
    with start(lines, out, "--model", MODEL, "--max-num-seqs", 2) as process:
        wait_for_lines(process, out, 1)
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        assert process.stderr
        complaint = process.stderr.read()
    assert "the same command goes on" in complaint
    assert "Traceback" not in complaint
    assert not psutil.wait_procs(children, timeout=5)[1]
    kept = whole_lines(out)
    assert kept.count(b"\n") < 60
    ended = batch(lines, out, "--base-url", server.v1)
    assert ended.returncode == 0, ended.stderr
    assert out.read_bytes().startswith(kept)
    assert [said(entry) for entry in read(out).values()] == [describe([FIRST])] * 60


GOOD = json.dumps(line("a", "Hello"))


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        (["", GOOD, "{"], "line 3: not JSON"),
        (["[]"], "line 1: "),
        (['{"url": "/v1/completions", "body": {}}'], "line 1: custom_id"),
        ([GOOD, GOOD.replace("Hello", "Bye")], "line 2: custom_id 'a' is that of line 1"),
        ([GOOD.replace("chat/completions", "embeddings")], "line 1: url"),
        ([GOOD.replace("POST", "GET")], "line 1: method"),
        (['{"custom_id": "a", "url": "/v1/completions", "body": 1}'], "line 1: body"),
        ([json.dumps(line("a", "Hello", stream=True))], "line 1: body.stream"),
        (['{"custom_id": "a", "url": "/v1/completions", "body": {"a": ' + "[" * 500 + "]" * 500 + "}}"], "line 1: body"),
        ([""], "no lines"),
    ],
)
def test_a_file_that_is_wrong_is_refused_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lines: list[str], complaint: str
) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join(lines))
    told = refusal(capsys, path, tmp_path / "out.jsonl")
    assert str(path) in told
    assert complaint in told


def test_files_that_are_none_or_somebody_elses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines, out, pipe, diary = (tmp_path / name for name in ("in.jsonl", "out.jsonl", "pipe", "diary"))
    lines.write_text(GOOD)
    os.mkfifo(pipe)
    assert "No such file" in refusal(capsys, tmp_path / "missing", out)
    assert "write it to a file" in refusal(capsys, "-", out)
    assert "write it to a file" in refusal(capsys, pipe, out)
    assert "name a file" in refusal(capsys, lines, pipe)
    assert "directory" in refusal(capsys, lines, tmp_path)
    assert "No such file" in refusal(capsys, lines, tmp_path / "no" / "folder")
    assert "same file" in refusal(capsys, lines, lines)
    for text in ("Dear diary,\n", "Dear diary", '{"dear": "diary"}\n'):
        diary.write_text(text)
        assert "diary, line 1" in refusal(capsys, lines, diary)
        assert diary.read_text() == text
    with out.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert "another run" in refusal(capsys, lines, out)


def test_arguments_that_are_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines.write_text(GOOD)
    assert "IN and OUT" in refusal(capsys, lines)
    assert "--prompt" in refusal(capsys, out, "--images", "*.png")
    assert "OUT" in refusal(capsys, lines, out, "--images", "*.png", "--prompt", "What is this?")
    assert "no file matches 'none-*.png'" in refusal(capsys, out, "--images", "none-*.png", "--prompt", "What is this?")
    assert "--dtype" in refusal(capsys, lines, out, "--dtype", "half")
    assert "--concurrency" in refusal(capsys, lines, out, "--concurrency", "0")
    assert "'nowhere'" in refusal(capsys, lines, out, "--base-url", "nowhere")
    assert NOBODY in refusal(capsys, lines, out)


Handle = Callable[[http.server.BaseHTTPRequestHandler], None]


@contextmanager
def troubled(*answers: Handle) -> Iterator[str]:
    """A server that handles each question in its own way, the last one for good."""
    left = list(answers)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(200, {"data": [{"id": "some-model"}]})(self)

        def do_POST(self) -> None:
            self.asked = self.rfile.read(int(self.headers["content-length"]))
            (left.pop(0) if len(left) > 1 else left[0])(self)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def answer(status: int, value: Any, **headers: str) -> Handle:
    def handle(handler: http.server.BaseHTTPRequestHandler) -> None:
        content = json.dumps(value).encode() if not isinstance(value, bytes) else value
        handler.send_response(status)
        for name, text in headers.items():
            handler.send_header(name.replace("_", "-"), text)
        handler.send_header("content-length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    return handle


def hang_up(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.close_connection = True


ANSWER = answer(200, {"choices": [{"message": {"content": "Yes."}}]})


def test_nothing_but_pictures_is_sent(tmp_path: Path) -> None:
    """Whoever wrote the file of requests may have named any file that its reader can read."""
    sent: list[bytes] = []

    def keep(handler: http.server.BaseHTTPRequestHandler) -> None:
        sent.append(handler.asked)  # type: ignore[attr-defined]
        ANSWER(handler)

    good, secret = encode(draw(FIRST)), b"a very secret secret"
    files = {
        "plain": secret,
        "like.png": secret,
        "bm": b"BM" + secret * 9,
        "svg.svg": b"<svg>" + secret + b"</svg>",
        "empty": b"",
        "large": good + bytes(MAX_IMAGE_BYTES),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "picture").write_bytes(good)
    (tmp_path / "photo.bmp").write_bytes(encode(draw(SECOND), "BMP"))
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "link.png").symlink_to("plain")
    bad = [*files, "fifo", "zero", "link.png", "/etc/passwd", "file:///etc/passwd", "../../../../../../etc/passwd"]
    lines = [line(name, image_part(name)) for name in [*bad, "picture", "photo.bmp"]]
    prompt = {"custom_id": "text", "method": "POST", "url": "/v1/completions", "body": {"prompt": "Hello", "images": ["plain"]}}
    out = tmp_path / "out.jsonl"
    with troubled(keep) as url:
        ended = batch(write(tmp_path / "in.jsonl", [*lines, prompt]), out, "--base-url", url)
    assert ended.returncode == 1, ended.stderr
    found = read(out)
    assert {name for name, entry in found.items() if entry["error"] is None} == {"picture", "photo.bmp"}
    assert {found[name]["error"]["code"] for name in [*bad, "text"]} == {"picture_unreadable"}
    assert found["like.png"]["error"]["message"] == "like.png: This is no picture of a known format, and nothing else is sent"
    assert found["fifo"]["error"]["message"] == "fifo: Not a regular file"
    assert found["large"]["error"]["message"] == "large: Larger than 64 MiB"
    urls = {json.loads(each)["messages"][0]["content"][0]["image_url"]["url"].partition(",")[0] for each in sent}
    assert urls == {"data:image/png;base64", "data:image/bmp;base64"}
    assert len(sent) == 2


def test_a_busy_server_is_asked_again_when_it_says(tmp_path: Path) -> None:
    lines, out = write(tmp_path / "in.jsonl", [line("a", "Hello")]), tmp_path / "out.jsonl"
    with troubled(answer(429, {}, retry_after="2"), hang_up, answer(503, {}, retry_after="1"), ANSWER) as url:
        began = time.monotonic()
        ended = batch(lines, out, "--base-url", url)
    assert ended.returncode == 0, ended.stderr
    assert time.monotonic() - began > 4
    assert said(read(out)["a"]) == "Yes."


@pytest.mark.parametrize(
    ("handle", "status", "code"),
    [
        (answer(503, {"error": {"code": "engine_restarting", "message": "Wait."}}), 503, "engine_restarting"),
        (answer(500, b"<html>"), 500, "status_500"),
        (answer(200, b"<html>"), 200, "no_json"),
        (hang_up, None, "no_answer"),
    ],
)
def test_patience_ends_with_the_reason(tmp_path: Path, handle: Handle, status: int | None, code: str) -> None:
    lines, out = write(tmp_path / "in.jsonl", [line("a", "Hello")]), tmp_path / "out.jsonl"
    with troubled(handle) as url:
        assert main([str(lines), str(out), "--base-url", url, "--patience", "0"]) == 1
        entry = read(out)["a"]
        assert (entry["response"] and entry["response"]["status_code"], entry["error"]["code"]) == (status, code)


def test_a_full_disk_is_told_and_goes_on(tmp_path: Path) -> None:
    lines, out = write(tmp_path / "in.jsonl", [line(str(number), "Hello") for number in range(10)]), tmp_path / "out.jsonl"
    with troubled(ANSWER) as url:
        command = f"ulimit -f 1; trap '' XFSZ; exec {sys.executable} -m llava_gateway batch {lines} {out} --base-url {url}"
        ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
        assert ended.returncode == 2
        assert "The same command goes on" in ended.stderr
        assert "Traceback" not in ended.stderr
        assert batch(lines, out, "--base-url", url).returncode == 0
    assert len(read(out)) == 10


def test_nobody_there(tmp_path: Path) -> None:
    lines = write(tmp_path / "in.jsonl", [line("a", "Hello")])
    ended = batch(lines, tmp_path / "out.jsonl", "--base-url", f"http://127.0.0.1:{free_port()}")
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
