"""The sockets of `serve`: the addresses that they listen on, and ports that cannot be opened."""

import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from llava_gateway.cli.listeners import ListenError, listen
from llava_gateway.settings import Settings

pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.socket(socket.AF_INET6) as listener:
        listener.bind(("::", 0))
        return int(listener.getsockname()[1])


def reachable(host: str, port: int) -> set[str]:
    """Return the loopback addresses on which the sockets of a host can be reached."""
    found = set()
    with ExitStack() as stack:
        for each in listen(Settings(host=host, port=port)):
            stack.enter_context(each).listen(8)
        for address in ("127.0.0.1", "::1"):
            try:
                socket.create_connection((address, port), timeout=5).close()
            except ConnectionRefusedError:
                continue
            found.add(address)
    return found


@pytest.mark.parametrize(
    ("host", "addresses"),
    [("::", {"127.0.0.1", "::1"}), ("", {"127.0.0.1", "::1"}), ("0.0.0.0", {"127.0.0.1"}), ("::1", {"::1"}), ("127.0.0.1", {"127.0.0.1"})],
)
def test_host_listens_on_its_addresses(host: str, addresses: set[str]) -> None:
    assert reachable(host, free_port()) == addresses


@pytest.mark.parametrize("host", ["no-such-host.invalid", "192.0.2.1", "a..b", "x" * 300, "::zz"])
def test_bad_host_is_one_line(host: str) -> None:
    with pytest.raises(ListenError, match="cannot listen on") as refused:
        listen(Settings(host=host, port=free_port()))
    assert "\n" not in str(refused.value)


def test_taken_port_closes_the_ports_before_it() -> None:
    first, taken = free_port(), free_port()
    with socket.create_server(("127.0.0.1", taken)), pytest.raises(ListenError, match=f"127.0.0.1:{taken}: Address already in use"):
        listen(Settings(port=first, more_ports=(taken,)))
    (again,) = listen(Settings(port=first))
    again.close()


@pytest.mark.parametrize("more", [False, True])
def test_taken_port_ends_serve_before_the_model_loads(more: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = str(listener.getsockname()[1])
        ports = ["--port", str(free_port()), "--more-ports", taken] if more else ["--port", taken]
        ended = subprocess.run(
            [sys.executable, "-m", "llava_gateway", "serve", "llava-demo", *ports], capture_output=True, text=True, timeout=60
        )
    assert (ended.returncode, len(ended.stderr.splitlines())) == (1, 1)
    assert f"{taken}: Address already in use" in ended.stderr


def test_idle_connections_outlive_those_of_proxies() -> None:
    """nginx and cloud load balancers keep an idle connection for 60 s. A request on a connection that the server closes is lost."""
    assert Settings().timeout_keep_alive > 60


def test_socket_of_an_earlier_server_is_replaced_and_other_files_are_not(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    for _ in range(2):
        (bound,) = listen(Settings(uds=str(path)))
        bound.close()
    path.unlink()
    path.write_text("a file")
    with pytest.raises(ListenError, match="Address already in use"):
        listen(Settings(uds=str(path)))
    with pytest.raises(ListenError, match="path too long"):
        listen(Settings(uds=str(tmp_path / ("x" * 200))))
    assert path.read_text() == "a file"
