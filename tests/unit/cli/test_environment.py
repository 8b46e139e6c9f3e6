"""A fault of the environment ends a command with one line and no traceback: a full disk, a closed stream, an encoding, a proxy."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.faulty_server import answer, faulty_server

from llava_gateway.auth.api_keys import Key, KeyFile, digest

pytestmark = pytest.mark.slow

CHUNK = 'data: {"choices": [{"delta": {"content": "%s"}, "finish_reason": "stop", "index": 0}]}\n\ndata: [DONE]\n\n'


def run(line: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command line of a shell. `LG` stands for `llava-gateway`."""
    script = line.replace("LG", f"{shlex.quote(sys.executable)} -m llava_gateway")
    clean = {name: value for name, value in os.environ.items() if not name.upper().endswith("_PROXY")}
    package = str(Path(__file__).parents[3])
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", script],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=120,
        cwd=folder,
        env=clean | {"PYTHONPATH": package} | environment,
    )


@pytest.mark.parametrize("command", ["--help", "serve --help", "batch --help", "completion bash", "keys list --file keys.json"])
def test_full_disk_behind_standard_output_is_one_line(tmp_path: Path, command: str) -> None:
    KeyFile(tmp_path / "keys.json").add(Key(name="bob", digest=digest("secret")))
    ended = run(f"LG {command} > /dev/full", tmp_path)
    assert (ended.returncode, len(ended.stderr.splitlines())) == (1, 1)
    assert "No space left on device" in ended.stderr


def test_key_whose_secret_cannot_be_printed_is_not_kept(tmp_path: Path) -> None:
    ended = run("LG keys new alice --file keys.json > /dev/full", tmp_path)
    assert (ended.returncode, len(ended.stderr.splitlines())) == (1, 1)
    assert not KeyFile(tmp_path / "keys.json").read()


@pytest.mark.parametrize("command", ["--help", "completion bash", "chat --help"])
@pytest.mark.parametrize("streams", [">&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_closed_or_full_streams_end_no_command_with_an_error(tmp_path: Path, command: str, streams: str) -> None:
    ended = run(f"LG {command} {streams}", tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("command", ["completion bash | head -1", "serve --help | head -1"])
def test_closed_pipe_is_no_error(tmp_path: Path, command: str) -> None:
    assert run(f"LG {command}", tmp_path).stderr == ""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_answer_beyond_the_locale_is_printed(tmp_path: Path, encoding: str) -> None:
    with faulty_server(answer(200, (CHUNK % "猫 café").encode())) as url:
        ended = run(f"LG chat --base-url {url} 'What is this? 猫'", tmp_path, PYTHONIOENCODING=encoding)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("? caf")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_error_beyond_the_locale_is_printed(tmp_path: Path, encoding: str) -> None:
    ended = run("LG chat --image 猫.png 'What is this?'", tmp_path, PYTHONIOENCODING=encoding)
    assert (ended.returncode, len(ended.stderr.splitlines())) == (2, 1)


def test_argument_that_is_not_utf_8_is_one_line(tmp_path: Path) -> None:
    with faulty_server(answer(200, {})) as url:
        ended = run(f"LG chat --base-url {url} $'\\xff'", tmp_path)
    assert (ended.returncode, len(ended.stderr.splitlines())) == (1, 1)


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "socks4://127.0.0.1:9", "nonsense://x"])
@pytest.mark.parametrize("command", ["chat Hello", "batch in.jsonl out.jsonl --base-url http://example.com"])
def test_proxy_that_cannot_be_used_is_one_line(tmp_path: Path, command: str, proxy: str) -> None:
    (tmp_path / "in.jsonl").write_text('{"custom_id": "a", "url": "/v1/completions", "body": {}}')
    ended = run(f"LG {command}", tmp_path, ALL_PROXY=proxy)
    assert (ended.returncode, len(ended.stderr.splitlines())) == (1, 1)
    assert "proxy" in ended.stderr


def test_bench_uses_no_proxy(tmp_path: Path) -> None:
    with faulty_server(answer(200, {"choices": []})) as url:
        ended = run(f"LG bench {url} --concurrency 1 --requests 1 --json /dev/full", tmp_path, ALL_PROXY="socks5://127.0.0.1:9")
    assert ended.returncode == 1
    assert "No space left on device" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_invalid_settings_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "llava-gateway.toml").write_text("port =")
    ended = run("LG serve", tmp_path)
    assert (ended.returncode, len(ended.stderr.splitlines())) == (1, 1)
    assert "llava-gateway.toml" in ended.stderr
