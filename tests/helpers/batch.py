"""Runs of `llava-gateway batch`, its input lines and its output."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from helpers.requests import body


def start(*arguments: object) -> subprocess.Popen[str]:
    """Start `llava-gateway batch`."""
    command = [sys.executable, "-m", "llava_gateway", "batch", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def batch(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `llava-gateway batch` to its end."""
    with start(*arguments) as process:
        out, err = process.communicate(timeout=400)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def line(custom_id: str, *content: Any, **fields: Any) -> dict[str, Any]:
    """Return an input line with a chat request."""
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body(*content, **fields)}


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    """Write an input."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Return the lines of an output by custom_id, after a check that none appears twice."""
    entries = [json.loads(text) for text in path.read_text().splitlines()]
    found = {entry["custom_id"]: entry for entry in entries}
    assert len(found) == len(entries)
    return found


def said(entry: dict[str, Any]) -> str:
    """Return the answer in an output line."""
    assert entry["error"] is None
    assert entry["response"]["status_code"] == 200
    (choice,) = entry["response"]["body"]["choices"]
    return str(choice["message"]["content"] if "message" in choice else choice["text"]).strip()
