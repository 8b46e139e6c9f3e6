"""The usage log: whatever tore its last line, every line that follows is whole; and nothing waits for it."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.waiting import within
from hypothesis import given
from hypothesis import strategies as st

from llava_gateway.app import create_app
from llava_gateway.observability import metrics
from llava_gateway.observability.context import RequestContext
from llava_gateway.observability.usage_log import UsageLog
from llava_gateway.settings import Settings, SettingsError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "usage.jsonl"


def write(path: Path, *names: str) -> None:
    log = UsageLog(path)
    for name in names:
        log.write(RequestContext(name), 200, 0.1)


def names(path: Path) -> list[str]:
    return [json.loads(line)["id"] for line in path.read_bytes().splitlines()]


@given(st.data())
def test_torn_last_line_is_removed_at_the_next_start(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("usage") / "usage.jsonl"
    write(path, "first", "torn")
    whole = path.read_bytes()
    begin = whole.index(b"\n") + 1
    cut = data.draw(st.integers(begin, len(whole)))
    path.write_bytes(whole[:cut] + bytes(data.draw(st.integers(0, 3))))
    write(path, "next")
    assert names(path) in (["first", "next"], ["first", "torn", "next"])
    assert ("torn" in names(path)) == (cut >= len(whole) - 1)


def test_torn_first_line_is_removed(path: Path) -> None:
    path.write_bytes(b'{"time":"2026-')
    write(path, "next")
    assert names(path) == ["next"]


def test_foreign_content_is_never_removed(path: Path) -> None:
    for text in (b"Dear diary", b'first\n{"dear": "diary"', b"x" * 200_000, b'{"time":"' + b"x" * 200_000):
        path.write_bytes(text)
        write(path, "next")
        before, last = path.read_bytes().rsplit(b"\n", 2)[:2]
        assert before == text
        assert json.loads(last)["id"] == "next"


def test_long_log_is_not_read_in_full(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)  # more than there is memory for
        file.seek(0, os.SEEK_END)
        file.write(b'\n{"time":"2026-')
    write(path, "next")
    with path.open("rb") as file:
        file.seek((1 << 40) + 1)
        assert json.loads(file.read())["id"] == "next"


def test_nothing_is_removed_while_another_gateway_writes(path: Path) -> None:
    """It may be about to write the rest of its line."""
    other = UsageLog(path)
    torn = b'{"time":"2026-'
    path.write_bytes(torn)
    write(path, "next")
    first, second = path.read_bytes().splitlines()
    assert (first, json.loads(second)["id"]) == (torn, "next")
    other.write(RequestContext("other"), 200, 0.1)
    del other
    path.write_bytes(b"")
    write(path, "after")
    assert names(path) == ["after"]


def test_rotated_log_is_reopened(path: Path) -> None:
    log = UsageLog(path)
    log.write(RequestContext("before"), 200, 0.1)
    path.rename(path.with_suffix(".1"))
    path.write_bytes(b'{"time":"2026-')
    log.write(RequestContext("after"), 200, 0.1)
    assert names(path.with_suffix(".1")) == ["before"]
    assert names(path) == ["after"]


def test_full_disk_tears_only_one_line(path: Path) -> None:
    """By a process that may write no file larger than a block."""
    program = (
        "import pathlib, sys; from llava_gateway.observability.context import RequestContext;"
        "from llava_gateway.observability.usage_log import UsageLog;"
        "log = UsageLog(pathlib.Path(sys.argv[1])); [log.write(RequestContext(str(number)), 200, 0.1) for number in range(9)]"
    )
    command = f"ulimit -f 1; trap '' XFSZ; exec {shlex.quote(sys.executable)} -c '{program}' {path}"
    subprocess.run(["bash", "-c", command], check=True, capture_output=True, timeout=60)
    assert not path.read_bytes().endswith(b"\n")
    write(path, "next")
    assert names(path) == [*map(str, range(len(names(path)) - 1)), "next"]


def refused(path: Path) -> str:
    with pytest.raises(SettingsError) as refusal:
        within(30, lambda: create_app(Settings(model="llava-demo", usage_log=str(path)), engine=lambda: pytest.fail("not asked")))
    return str(refusal.value)


def test_impossible_usage_log_is_refused_at_start(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert refused(tmp_path / "fifo") == "usage_log cannot be written: Is a socket, or a FIFO that nobody reads"
    assert refused(tmp_path) == "usage_log cannot be written: Is a directory"


def test_stalled_fifo_reader_loses_lines_but_does_not_block(path: Path) -> None:
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    before = metrics.USAGE_LOG_FAILURES._value.get()
    within(30, lambda: write(path, *map(str, range(1000))))
    lost = metrics.USAGE_LOG_FAILURES._value.get() - before
    os.set_blocking(reader, True)
    with os.fdopen(reader, "rb") as file:
        read = [json.loads(line)["id"] for line in file]
    assert 0 < lost < 1000
    assert read == [str(number) for number in range(len(read))]
    assert len(read) + lost == 1000


@pytest.mark.parametrize("device", ["/dev/null", "/dev/full"])
def test_character_device_is_accepted(device: str) -> None:
    write(Path(device), "one", "two")
