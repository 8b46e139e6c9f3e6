"""`llava-gateway batch` with a server that fails, and with files that must not be sent."""

import http.server
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.batch import batch, line, read, said, write
from helpers.faulty_server import Handle, answer, faulty_server
from helpers.requests import image_part

from llava_gateway.cli.batch import main
from llava_gateway.client.remote import MAX_IMAGE_BYTES
from llava_gateway.demo.images import draw, encode

pytestmark = pytest.mark.slow

FIRST, SECOND = ("red", "blue", "green", "white"), ("yellow", "black", "orange", "purple")


def hang_up(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.close_connection = True


ANSWER = answer(200, {"choices": [{"message": {"content": "Yes."}}]})


def test_only_images_are_sent(tmp_path: Path) -> None:
    """An input file may name any file that its user can read."""
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
    (tmp_path / "image").write_bytes(good)
    (tmp_path / "photo.bmp").write_bytes(encode(draw(SECOND), "BMP"))
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "link.png").symlink_to("plain")
    bad = [*files, "fifo", "zero", "link.png", "/etc/passwd", "file:///etc/passwd", "../../../../../../etc/passwd"]
    lines = [line(name, image_part(name)) for name in [*bad, "image", "photo.bmp"]]
    prompt = {"custom_id": "text", "method": "POST", "url": "/v1/completions", "body": {"prompt": "Hello", "images": ["plain"]}}
    out = tmp_path / "out.jsonl"
    with faulty_server(keep) as url:
        ended = batch(write(tmp_path / "in.jsonl", [*lines, prompt]), out, "--base-url", url)
    assert ended.returncode == 1, ended.stderr
    found = read(out)
    assert {name for name, entry in found.items() if entry["error"] is None} == {"image", "photo.bmp"}
    assert {found[name]["error"]["code"] for name in [*bad, "text"]} == {"picture_unreadable"}
    assert found["like.png"]["error"]["message"] == "like.png: This is no picture of a known format, and nothing else is sent"
    assert found["fifo"]["error"]["message"] == "fifo: Not a regular file"
    assert found["large"]["error"]["message"] == "large: Larger than 64 MiB"
    urls = {json.loads(each)["messages"][0]["content"][0]["image_url"]["url"].partition(",")[0] for each in sent}
    assert urls == {"data:image/png;base64", "data:image/bmp;base64"}
    assert len(sent) == 2


@pytest.mark.slow
def test_busy_server_is_asked_again_after_retry_after(tmp_path: Path) -> None:
    lines, out = write(tmp_path / "in.jsonl", [line("a", "Hello")]), tmp_path / "out.jsonl"
    with faulty_server(answer(429, {}, retry_after="2"), hang_up, answer(503, {}, retry_after="1"), ANSWER) as url:
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
def test_failure_is_recorded_when_the_patience_ends(tmp_path: Path, handle: Handle, status: int | None, code: str) -> None:
    lines, out = write(tmp_path / "in.jsonl", [line("a", "Hello")]), tmp_path / "out.jsonl"
    with faulty_server(handle) as url:
        assert main([str(lines), str(out), "--base-url", url, "--patience", "0"]) == 1
        entry = read(out)["a"]
        assert (entry["response"] and entry["response"]["status_code"], entry["error"]["code"]) == (status, code)


def test_full_disk_is_reported_and_the_run_resumes(tmp_path: Path) -> None:
    lines, out = write(tmp_path / "in.jsonl", [line(str(number), "Hello") for number in range(10)]), tmp_path / "out.jsonl"
    with faulty_server(ANSWER) as url:
        command = f"ulimit -f 1; trap '' XFSZ; exec {shlex.quote(sys.executable)} -m llava_gateway batch {lines} {out} --base-url {url}"
        ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, check=False)
        assert ended.returncode == 2
        assert "The same command goes on" in ended.stderr
        assert "Traceback" not in ended.stderr
        assert batch(lines, out, "--base-url", url).returncode == 0
    assert len(read(out)) == 10
