"""`llava-gateway batch` refuses wrong files and arguments before it sends a request."""

import fcntl
import json
import os
from pathlib import Path

import pytest
from helpers.batch import line

from llava_gateway.cli.batch import main

UNREACHABLE = "http://127.0.0.1:9"


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Return the message of a command that is refused before it sends a request."""
    try:
        status = main([*map(str, arguments), "--base-url", UNREACHABLE])
    except SystemExit as error:
        status = int(str(error.code))
    assert status == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    return said


GOOD = json.dumps(line("a", "Hello"))


def test_unsuitable_input_and_output_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_wrong_arguments_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines.write_text(GOOD)
    assert "IN and OUT" in refusal(capsys, lines)
    assert "--prompt" in refusal(capsys, out, "--images", "*.png")
    assert "OUT" in refusal(capsys, lines, out, "--images", "*.png", "--prompt", "What is this?")
    assert "no file matches 'none-*.png'" in refusal(capsys, out, "--images", "none-*.png", "--prompt", "What is this?")
    assert "--dtype" in refusal(capsys, lines, out, "--dtype", "half")
    assert "--concurrency" in refusal(capsys, lines, out, "--concurrency", "0")
    assert "'nowhere'" in refusal(capsys, lines, out, "--base-url", "nowhere")
    assert UNREACHABLE in refusal(capsys, lines, out)
