"""`llava-gateway bench` on a real server: the report matches the requests that it sent, and failures are shown."""

import json
from pathlib import Path
from typing import Any

from helpers.commands import run
from helpers.server import Server


def rows(server: Server, folder: Path, *arguments: str) -> list[dict[str, Any]]:
    file = folder / "bench.json"
    ended = run("bench", server.url, "--json", str(file), *arguments)
    assert ended.returncode == 0, ended.stderr
    assert f"llava-demo at {server.url}" in ended.stdout
    found: list[dict[str, Any]] = json.loads(file.read_text())
    return found


def test_bench_reports_tokens_and_times(server: Server, tmp_path: Path) -> None:
    one, four = rows(server, tmp_path, "--concurrency", "1,4", "--requests", "8", "--max-tokens", "32", "--ignore-eos")
    for row in (one, four):
        assert (row["requests"], row["failed"]) == (8, 0)
        assert row["tokens/s"] == row["requests/s"] * 32
        assert 0 < row["first token p50"] < row["answer p50"] <= row["answer p99"]
        assert 0 < row["between tokens p50"] < row["answer p99"]


def test_bench_sends_images(server: Server, tmp_path: Path) -> None:
    (row,) = rows(
        server, tmp_path, "--concurrency", "2", "--requests", "4", "--images", "2", "--image-size", "640x480", "--max-tokens", "5"
    )
    assert row["failed"] == 0


def test_bench_sends_a_mixed_load(server: Server, tmp_path: Path) -> None:
    options = ("--images", "1", "--image-share", "0.5", "--image-size", "64x48", "--max-tokens", "5")
    (row,) = rows(server, tmp_path, "--concurrency", "2", "--requests", "4", *options)
    assert (row["requests"], row["failed"]) == (4, 0)


def test_bench_reports_failures(server: Server) -> None:
    ended = run("bench", server.url, "--concurrency", "2", "--requests", "2", "--images", "8")
    assert ended.returncode == 1
    assert "2 failed" in ended.stderr.replace("\n", " ") or ended.stderr.count("1 failed") == 2
    assert "context" in ended.stderr


def test_bench_refuses_a_wrong_model_or_number(server: Server) -> None:
    assert run("bench", server.url, "--model", "no-such", "--requests", "1", "--concurrency", "1").returncode == 1
    assert run("bench", server.url, "--concurrency", "0").returncode == 2
