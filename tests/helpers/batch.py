"""Runs of `llava-gateway batch`, its input lines and its output."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from helpers.requests import body


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "llava_gateway", "batch", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def batch(*arguments: object) -> subprocess.CompletedProcess[str]:
    with start(*arguments) as process:
        out, err = process.communicate(timeout=200)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)


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
