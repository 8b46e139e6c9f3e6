"""HAProxy as `llava-gateway-haproxy` starts it notices that clients leave. This is the purpose of the command."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer

import psutil
import pytest
from helpers.server import free_port
from helpers.waiting import wait_for
from ray.serve._private.haproxy_templates import HAPROXY_CONFIG_TEMPLATE

pytestmark = pytest.mark.slow

COMMAND = Path(sys.executable).with_name("llava-gateway-haproxy")
CLIENTS = 12
HEAD = b"POST / HTTP/1.1\r\nhost: here\r\ncontent-length: 2\r\n\r\n"
RAYS_OPTIONS = ("option abortonclose", "option splice-request", "option splice-response", "option idle-close-on-response")
CONFIG = """
global
    nbthread 4
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    {options}
frontend front
    bind 127.0.0.1:{port}
    default_backend back
backend back
    http-reuse always
    server only 127.0.0.1:{behind}
"""


class Slow(ThreadingTCPServer):
    """A server that does not answer, and records the connections that have come and gone."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.come: list[object] = []
        self.gone: list[object] = []


class _Handler(BaseRequestHandler):
    server: Slow

    def handle(self) -> None:
        if self.request.recv(1 << 16):
            self.server.come.append(self)
            with contextlib.suppress(ConnectionResetError):
                while self.request.recv(1 << 16):
                    pass
            self.server.gone.append(self)


@pytest.fixture
def slow() -> Iterator[Slow]:
    with Slow() as server:
        threading.Thread(target=server.serve_forever, args=(0.05,)).start()
        yield server
        server.shutdown()


@pytest.fixture
def front(slow: Slow, tmp_path: Path) -> Iterator[tuple[int, psutil.Process]]:
    """Start HAProxy, and return its port and its process."""
    port, config = free_port(), tmp_path / "haproxy.cfg"
    config.write_text(CONFIG.format(options="\n    ".join(RAYS_OPTIONS), port=port, behind=slow.server_address[1]))
    environment = os.environ | {"RAY_SERVE_HAPROXY_BINARY_PATH": str(COMMAND)}  # as Ray starts it
    with subprocess.Popen((COMMAND, "-db", "-f", config), env=environment) as process:
        haproxy = psutil.Process(process.pid)
        wait_for(lambda: any(each.status == psutil.CONN_LISTEN for each in haproxy.net_connections()))
        yield port, haproxy
        process.kill()


def test_ray_still_sets_these_options() -> None:
    """Without them the command may no longer be needed."""
    for option in RAYS_OPTIONS:
        assert option in HAPROXY_CONFIG_TEMPLATE


def test_haproxy_notices_that_clients_leave(slow: Slow, front: tuple[int, psutil.Process]) -> None:
    port, haproxy = front
    clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(CLIENTS)]
    for part in (HEAD, b"{}"):
        for client in clients:
            client.sendall(part)
        time.sleep(0.2)
    wait_for(lambda: len(slow.come) == CLIENTS)
    for client in clients:
        client.close()
    wait_for(lambda: len(slow.gone) == CLIENTS, 5)
    before = haproxy.cpu_times()
    time.sleep(1)
    after = haproxy.cpu_times()
    assert after.user + after.system - before.user - before.system < 0.5
    assert haproxy.name() == "haproxy"  # the process that was started, which Ray watches
