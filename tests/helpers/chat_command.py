"""`llava-gateway chat` in a terminal or a pipe, and a server that answers from a script."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pexpect
import pytest
from helpers.server import ROOT

FIRST, SECOND = ROOT / "examples" / "pictures" / "first.png", ROOT / "examples" / "pictures" / "second.jpg"
COMMAND = [sys.executable, "-m", "llava_gateway", "chat"]


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A home of its own, in the folder that commands run in."""
    monkeypatch.chdir(tmp_path)
    ours = {"XDG_STATE_HOME": str(tmp_path / "state"), "TERM": "xterm", "NO_COLOR": "1", "OPENAI_API_KEY": "", "OPENAI_BASE_URL": ""}
    return {**os.environ, **ours}


def terminal(url: str, environment: dict[str, str], *arguments: str) -> "pexpect.spawn[str]":
    command, *rest = [*COMMAND, "--base-url", url, *arguments]
    return pexpect.spawn(command, rest, env=environment, encoding="utf-8", timeout=60, dimensions=(40, 240))


def ask(child: "pexpect.spawn[str]", line: str) -> str:
    """Type a line at the prompt; what stands between it and the next prompt."""
    child.sendline(line)
    child.expect_exact(line)
    child.expect(r"(?s)(.*?)\x1b\[\?2004h((?:\[\d+ pictures?\] )?> )")
    return str(child.match.group(1))


def begin(child: "pexpect.spawn[str]") -> None:
    child.expect_exact("\x1b[?2004h")
    child.expect_exact("> ")


def leave(child: "pexpect.spawn[str]") -> None:
    child.sendeof()
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == 0


def run(url: str, environment: dict[str, str], *arguments: str, question: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, "--base-url", url, *arguments]
    given: dict[str, Any] = {"stdin": subprocess.DEVNULL} if question is None else {"input": question}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False, **given)
