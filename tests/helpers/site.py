"""The documentation site, built from docs/ and served on this machine."""

import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from helpers.server import ROOT

MKDOCS = ROOT / ".venv-docs" / "bin" / "mkdocs"


def build(folder: Path) -> None:
    """Build the site into a folder. Without its tools, skip the test, or fail it where CI is set."""
    if not MKDOCS.exists():
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no .venv-docs: `make docs` creates it")
    command = (MKDOCS, "build", "--strict", "--quiet", "--site-dir", folder)
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Write no log."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder on this machine. Yield the URL, which has no slash at its end."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_QuietHandler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
