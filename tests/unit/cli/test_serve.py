"""How the server listens: TLS, Unix domain sockets, and behind a proxy that serves it under a path."""

import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from helpers.requests import MODEL
from helpers.server import ROOT, free_port

from llava_gateway.app import create_app
from llava_gateway.cli.listeners import check_keys
from llava_gateway.cli.serve import Server
from llava_gateway.settings import Settings, SettingsError

pytestmark = pytest.mark.slow

SCRIPT = """
import sys
sys.path.insert(0, sys.argv.pop(1))
from helpers.silent_engine import SilentEngine
from llava_gateway.app import create_app
from llava_gateway.cli import flags
from llava_gateway.cli.listeners import listen
from llava_gateway.cli.serve import Server
settings, _ = flags.parse(sys.argv[1:])
Server(settings, create_app(settings, engine=SilentEngine)).run(listen(settings))
"""
"""A server whose engine never answers."""
HTTPS_HEAD = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with cert.pem and key.pem for localhost."""
    folder = tmp_path_factory.mktemp("certificate")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -keyout key.pem -out cert.pem -subj /CN=localhost"
    subprocess.run([*command.split(), "-addext", "subjectAltName=DNS:localhost"], cwd=folder, check=True, capture_output=True)
    return folder


@contextmanager
def running(client: Callable[[], httpx.Client], *flags: str) -> Iterator[httpx.Client]:
    """Run a server until the end of the block, and yield a client. `client`: makes one."""
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(ROOT / "tests"), *flags])
    try:
        with client() as http:
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                try:
                    http.get("/health")
                    break
                except httpx.TransportError:
                    assert process.poll() is None
                    time.sleep(0.1)
            yield http
    finally:
        process.terminate()
        process.wait(30)


def test_tls_on_every_port_and_under_a_path(certificate: Path) -> None:
    port, other = free_port(), free_port()
    context = ssl.create_default_context(cafile=str(certificate / "cert.pem"))
    tls = ("--ssl-certfile", str(certificate / "cert.pem"), "--ssl-keyfile", str(certificate / "key.pem"))
    flags = ("--port", str(port), "--more-ports", str(other), "--root-path", "/llava", "--model", MODEL, *tls)
    with running(lambda: httpx.Client(base_url=f"https://localhost:{port}", verify=context), *flags) as http:
        for url in ("/v1/models", "/llava/v1/models", f"https://localhost:{other}/v1/models"):  # the proxy may remove the path
            assert [model["id"] for model in http.get(url).json()["data"]] == [MODEL]
        assert http.get("/other/v1/models").status_code == 404
        with (
            socket.create_connection(("localhost", port), timeout=30) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as tls_socket,
        ):
            tls_socket.sendall(HTTPS_HEAD)
            assert tls_socket.recv(1000).startswith(b"HTTP/1.1 200 ")
        with socket.create_connection(("localhost", port), timeout=30) as plain:
            plain.sendall(HTTPS_HEAD)
            assert b"200" not in plain.recv(1000)


def test_unix_domain_socket_needs_no_key(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    flags = ("--uds", str(path), "--host", "0.0.0.0", "--model", MODEL)
    with running(lambda: httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://localhost"), *flags) as http:
        assert [model["id"] for model in http.get("/v1/models").json()["data"]] == [MODEL]
        asked = {"model": MODEL, "prompt": "Hello"}
        assert http.post("/tokenize", json=asked).status_code == 200


def test_keys_are_needed_for_ports_beside_a_unix_domain_socket() -> None:
    check_keys(Settings(uds="/tmp/s", host="0.0.0.0"))
    with pytest.raises(SettingsError, match="no API keys"):
        check_keys(Settings(uds="/tmp/s", host="0.0.0.0", more_ports=(5000,)))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"ssl_keyfile": "key.pem"}, "need ssl_certfile"),
        ({"ssl_cert_reqs": 2}, "need ssl_certfile"),
        ({"ssl_certfile": "missing.pem"}, "ssl_certfile missing.pem: .*No such file"),
        ({"ssl_certfile": "cert.pem"}, "ssl_certfile cert.pem: "),
        ({"ssl_certfile": "cert.pem", "ssl_keyfile": "key.pem", "ssl_ciphers": "no-such"}, "ssl_certfile cert.pem: "),
    ],
)
def test_certificate_that_cannot_be_used_is_a_settings_error(
    certificate: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, str], expected: str
) -> None:
    monkeypatch.chdir(certificate)
    settings = Settings(model=MODEL, **given)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match=expected):
        Server(settings, create_app(settings))
