"""The server that `llava-gateway chat --model` starts: it has one user, it ends with the chat, and a failure is one line."""

import io
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest
from helpers.chat_command import COMMAND
from helpers.server import ROOT
from helpers.waiting import wait_for

from llava_gateway.client import local_server as module
from llava_gateway.client.local_server import LocalServerError, local_server

pytestmark = pytest.mark.slow

SERVE = f"""
import sys
sys.path.insert(0, {str(ROOT / "tests")!r})
from helpers.silent_engine import SilentEngine
from llava_gateway.app import create_app
from llava_gateway.cli import flags
from llava_gateway.cli.listeners import listen
from llava_gateway.cli.serve import Server
settings, _ = flags.parse(sys.argv[1:])
Server(settings, create_app(settings, engine=SilentEngine)).run(listen(settings))
"""
"""`llava-gateway serve` with an engine that loads at once."""
OPERATOR = """
host = "0.0.0.0"
port = 1
uds = "socket"
more_ports = [2]
api_keys = ["of the operator"]
keys_file = "missing.json"
ssl_certfile = "missing.pem"
ssl_cert_reqs = 2
root_path = "/llava"
controller = "http://127.0.0.1:9"
apis = ["chat_ui"]
served_model_name = "own"
"""


@pytest.fixture(autouse=True)
def _command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "COMMAND", (sys.executable, "-c", SERVE))


def test_server_of_a_chat_is_for_this_user_alone_whatever_the_operator_has_set(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("llava-gateway.toml").write_text(OPERATOR)
    monkeypatch.setenv("LLAVA_API_KEYS", "of the environment")
    with local_server("llava-demo") as server:
        listed = httpx.get(f"{server.url}/models", headers={"authorization": f"Bearer {server.key}"})
        assert [model["id"] for model in listed.json()["data"]] == ["own"]
        assert httpx.get(f"{server.url}/models").status_code == 401
        address = server.url.removesuffix("/v1")
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/health")


def test_server_that_does_not_start_is_reported_in_its_own_words() -> None:
    with pytest.raises(LocalServerError) as refused, local_server("llava-demo", ["--port", "x"]):
        pass
    assert "LLAVA_PORT" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_reason_is_the_gateways_last_error_among_the_lines_of_other_packages() -> None:
    log = io.BytesIO(
        b"x" * module.MAX_LOG + b"\n2026-11-28 20:00:00,123 ERROR llava_gateway.app: The model did not load: no such file: /m\n"
        b"(EngineCore pid=5) Traceback\nllava_gateway: a warning of another program\n"
    )
    assert module._reason(log) == "The model did not load: no such file: /m"
    assert module._reason(io.BytesIO(b"Killed\n")) == ""


def test_server_ends_if_the_chat_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom llava_gateway.client import local_server as module\n"
        f"module.COMMAND = (sys.executable, '-c', {SERVE!r})\n"
        "with module.local_server('llava-demo'):\n    print('ready', flush=True)\n    sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as chat:
        assert chat.stdout
        assert chat.stdout.readline() == "ready\n"
        children = psutil.Process(chat.pid).children(recursive=True)
        assert len(children) >= 2, "the server and its guard"
        os.kill(chat.pid, signal.SIGKILL)
    wait_for(lambda: not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--serve-flags='--dtype half' Hello", "--serve-flags needs --model"),
        ("--serve-flags=--dtype --model m --base-url http://127.0.0.1:1 Hello", "--serve-flags needs --model"),
        ('--serve-flags="\'" --model m Hello', "--serve-flags"),
    ],
)
def test_flags_without_a_model_to_load_are_refused(own_home: dict[str, str], arguments: str, said: str) -> None:
    ended = subprocess.run([*COMMAND, *shlex.split(arguments)], capture_output=True, text=True, env=own_home, timeout=120, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert said in ended.stderr
