"""The chat page in Firefox. The other tests of the page use Chromium, since Playwright drives no Firefox of a Linux distribution."""

import json
import subprocess
from pathlib import Path

from helpers import programs
from helpers.chat_ui import ONE, png
from helpers.server import ROOT, Server

from llava_gateway.demo.images import describe


def test_firefox_gets_an_answer_and_keeps_the_conversation(server: Server, tmp_path: Path) -> None:
    (tmp_path / "grid.png").write_bytes(png(ONE))
    script = ROOT / "tests" / "node" / "firefox.mjs"
    command = [str(part) for part in (programs.NODE, script, server.url, programs.find("firefox-esr"), tmp_path / "grid.png")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr
    got = json.loads(ended.stdout)
    assert got.pop("browser").startswith("firefox/")
    assert "576 image" in got.pop("cost")
    assert got.pop("image") > 0
    assert got == {"answer": describe([ONE]), "kept": describe([ONE]), "problems": [], "violations": []}
