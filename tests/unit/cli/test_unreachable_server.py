"""Commands whose server cannot be reached say so in one line."""

from pathlib import Path

import pytest
from helpers.batch import batch, line, write
from helpers.commands import run
from helpers.server import free_port

pytestmark = pytest.mark.slow


def test_bench_without_a_server_ends_with_one_line() -> None:
    ended = run("bench", f"http://127.0.0.1:{free_port()}")
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1


def test_batch_without_a_server_ends_with_one_line(tmp_path: Path) -> None:
    lines = write(tmp_path / "in.jsonl", [line("a", "Hello")])
    ended = batch(lines, tmp_path / "out.jsonl", "--base-url", f"http://127.0.0.1:{free_port()}")
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
