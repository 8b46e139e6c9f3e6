"""`llava-gateway chat` in a terminal or a pipe, and a server that answers from a script."""

import subprocess
import sys
from typing import Any

import pexpect
from helpers.server import ROOT, START_TIMEOUT

FIRST, SECOND = ROOT / "examples" / "pictures" / "first.png", ROOT / "examples" / "pictures" / "second.jpg"
COMMAND = [sys.executable, "-m", "llava_gateway", "chat"]


def terminal(url: str, environment: dict[str, str], *arguments: str) -> "pexpect.spawn[str]":
    """Start a chat in a terminal."""
    return pexpect.spawn(
        COMMAND[0], [*COMMAND[1:], "--base-url", url, *arguments], env=environment, encoding="utf-8", timeout=120, dimensions=(40, 240)
    )


def ask(child: "pexpect.spawn[str]", line: str) -> str:
    """Type a line at the prompt, and return the text before the next prompt. `child.match.group(2)` is that prompt."""
    child.sendline(line)
    child.expect_exact(line)
    child.expect(r"(?s)(.*?)\x1b\[\?2004h((?:\[\d+ pictures?\] )?> )")
    return str(child.match.group(1))


def wait_for_prompt(child: "pexpect.spawn[str]") -> None:
    child.expect_exact("\x1b[?2004h")
    child.expect_exact("> ")


def quit_chat(child: "pexpect.spawn[str]") -> None:
    """End the chat with Ctrl-D."""
    child.sendeof()
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == 0


def run(url: str, environment: dict[str, str], *arguments: str, question: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a chat in a pipe. `url`: empty for none. `question`: its standard input."""
    command = [*COMMAND, *(("--base-url", url) if url else ()), *arguments]
    given: dict[str, Any] = {"stdin": subprocess.DEVNULL} if question is None else {"input": question}
    return subprocess.run(command, capture_output=True, text=True, timeout=START_TIMEOUT, env=environment, check=False, **given)
