"""Other projects' clients, each in its own environment of `make test-clients`, and the recipes of docs/clients.md for them."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from helpers.documentation import recipes
from helpers.server import ROOT, Server

ENVIRONMENTS = ROOT / ".venv-clients"
OFFLINE = {
    "AGNO_TELEMETRY": "false",
    "ANONYMIZED_TELEMETRY": "false",
    "DO_NOT_TRACK": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HAYSTACK_TELEMETRY_ENABLED": "False",
    "HF_HUB_OFFLINE": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
}
"""Environment variables with which the clients ask no server on the internet."""


def recipe(heading: str, server: Server) -> list[str]:
    """Return the command that runs a recipe of docs/clients.md on a server, without its interpreter's path."""
    language, code = recipes()[heading]
    code = code.replace("http://127.0.0.1:8000", server.url)
    return {"python": ["python", "-c", code], "sh": ["bash", "-euc", code], "js": ["node", "--input-type=module", "--eval", code]}[language]


def run(command: list[str], folder: Path, environment: dict[str, str]) -> str:
    """Run a command in a folder and return its output. Fail with its errors if its status is not 0."""
    ended = subprocess.run(command, capture_output=True, text=True, timeout=180, cwd=folder, env=environment)
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"
    return ended.stdout


@contextmanager
def running(command: list[str], folder: Path, environment: dict[str, str]) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Run a server of a client until the end, and yield its process and its log."""
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=folder, env=environment, start_new_session=True)
    try:
        yield process, log
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def environment(programs: Path, folder: Path, **variables: str) -> dict[str, str]:
    """Return the environment variables of a client whose programs and home are in these folders. The folder gets the examples' pictures."""
    if not (folder / "examples").exists():
        (folder / "examples").symlink_to(ROOT / "examples")
    inherited = {name: value for name, value in os.environ.items() if not re.match(r"OPENAI_|LLAVA_|PYTHON", name)}
    return inherited | OFFLINE | {"PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(folder)} | variables
