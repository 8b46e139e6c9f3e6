"""Connections that strangers make: every state of them ends in time, and what RFC 9112 allows is answered."""

import http.client
import itertools
import json
import socket
import subprocess
import time
from collections.abc import Iterator

import pytest
from helpers.connections import UPGRADE, Gateway, gateway, post, read_all
from helpers.waiting import wait_for
from hypothesis import given
from hypothesis import strategies as st
from openai import OpenAI

from llava_gateway.http.request_head import HOST, Refused, check_head

pytestmark = pytest.mark.slow

LOOPS = ("asyncio", "uvloop")
HEALTHY = post({"a": 1}, b"connection: close\r\n")


@pytest.fixture(scope="module", params=LOOPS)
def quick(request: pytest.FixtureRequest) -> Iterator[Gateway]:
    """Its work is done at once."""
    with gateway(request.param) as running:
        running.go.set()
        yield running


@pytest.fixture(params=LOOPS)
def slow(request: pytest.FixtureRequest) -> Iterator[Gateway]:
    """Its work goes on until the test ends it."""
    with gateway(request.param) as running:
        yield running


def head(*lines: bytes, request: bytes = b"GET /x HTTP/1.1") -> bytes:
    return b"\r\n".join((request, *lines, b"", b""))


OFFER = UPGRADE.rstrip(b"\r\n")
STALLED = {
    "nothing": b"",
    "half a head": b"GET /x HTTP/1.1\r\nhost: x\r\n",
    "upgrade with a length": head(b"host: x", b"content-length: 5", OFFER),
    "upgrade with chunks": head(b"host: x", b"transfer-encoding: chunked", OFFER),
    "upgrade with chunks to the socket": head(b"host: x", b"transfer-encoding: chunked", OFFER, request=b"GET /socket HTTP/1.1"),
    "upgrade by POST": head(b"host: x", b"content-length: 5", b"content-type: application/json", OFFER, request=b"POST /work HTTP/1.1"),
    "upgrade of another kind": head(
        b"host: x", b"content-length: 5", b"connection: upgrade", b"upgrade: foo", request=b"POST /work HTTP/1.1"
    ),
    "upgrade with headers that websockets refuses": head(b"host: x", OFFER, *(b"a: b" for _ in range(200))),
    "upgrade with a long line": head(b"host: x", OFFER, b"a: " + b"b" * 9000),
    "upgrade refused": head(b"host: x", OFFER),
    "upgrade without a key": head(b"host: x", b"connection: upgrade", b"upgrade: websocket", request=b"GET /socket HTTP/1.1"),
    "websocket": head(b"host: x", OFFER, request=b"GET /socket HTTP/1.1"),
    "websocket with half a frame": head(b"host: x", OFFER, request=b"GET /socket HTTP/1.1"),
    "half a body": post({"a": 1})[:-2],
    "an answer and then nothing": post({"a": 1}),
    "an answer and then a body": head(b"host: x", b"content-length: 5"),
}


@pytest.mark.parametrize("begun", STALLED)
def test_stalled_connections_do_not_block_new_ones(begun: str) -> None:
    with gateway(max_connections=30, head_timeout=0.3, body_timeout=0.3) as running:
        running.go.set()
        stalled = [running.connect() for _ in range(30)]
        try:
            for connection in stalled:
                connection.sendall(STALLED[begun])
            if begun == "websocket with half a frame":
                for connection in stalled:
                    connection.recv(1)
                    connection.sendall(b"\x81\xfe\xff")
            for connection in stalled:
                read_all(connection)
            wait_for(lambda: running.ask(HEALTHY).startswith(b"HTTP/1.1 200"))
        finally:
            for connection in stalled:
                connection.close()


def test_websocket_counts_against_the_connection_limit() -> None:
    with gateway(max_connections=4, body_timeout=20) as running:
        running.go.set()
        sockets = [running.open_websocket() for _ in range(4)]
        assert running.ask(HEALTHY) == b""
        sockets.pop().close()
        wait_for(lambda: running.ask(HEALTHY).startswith(b"HTTP/1.1 200"))
        for each in sockets:
            each.close()


@pytest.mark.parametrize("offer", [b"foo", b"H2C", b"h2c", b"TLS/1.2, websocket", b"websocket"])
@pytest.mark.parametrize("chunked", [False, True])
def test_ignored_upgrade_does_not_lose_the_body(quick: Gateway, offer: bytes, chunked: bool) -> None:
    more = b"connection: upgrade, close\r\nupgrade: " + offer + b"\r\n"
    request = post({"a": 1}, more)
    if chunked:
        request = request.replace(b'content-length: 8\r\n\r\n{"a": 1}', b'transfer-encoding: chunked\r\n\r\n8\r\n{"a": 1}\r\n0\r\n\r\n')
    assert quick.ask(request).endswith(b'{"a":1}')


def test_ignored_upgrade_may_arrive_in_pieces(quick: Gateway) -> None:
    request = post({"a": 1}, b"connection: upgrade, close\r\nupgrade: h2c\r\n")
    for cut in range(1, len(request), 7):
        with quick.connect() as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sendall(request[:cut])
            time.sleep(0.01)  # else the pieces would come as one
            connection.sendall(request[cut:])
            assert read_all(connection).endswith(b'{"a":1}'), cut


def test_ignored_upgrade_keeps_the_connection_open(quick: Gateway) -> None:
    with quick.connect() as connection:
        for _ in range(3):
            connection.sendall(post({"a": 1}, b"connection: upgrade\r\nupgrade: foo\r\n"))
            answer = b""
            while not answer.endswith(b'{"a":1}'):
                answer += connection.recv(4096)
            assert answer.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("path", [b"/x", b"/work", b"/socket?x"])
def test_websocket_with_a_body_or_on_another_path_is_refused(quick: Gateway, path: bytes) -> None:
    request = b"GET %b HTTP/1.1" % path
    for lines in ((OFFER, b"content-length: 5"), (OFFER,)):
        if path == b"/socket?x" and lines == (OFFER,):
            continue
        answer = quick.ask(head(b"host: x", *lines, request=request) + b"hello" * (len(lines) - 1))
        assert answer[:10] == b"HTTP/1.1 4", answer


BAD_HEADS = {
    "no host": (b"400", [b"a: b"]),
    "two hosts": (b"400", [b"host: a", b"host: a"]),
    "a host with a space": (b"400", [b"host: a b"]),
    "a host with a path": (b"400", [b"host: a/b"]),
    "a host with a user": (b"400", [b"host: a@b"]),
    "a coding besides chunked": (b"501", [b"host: x", b"transfer-encoding: gzip, chunked"]),
    "chunked twice": (b"400", [b"host: x", b"transfer-encoding: chunked", b"transfer-encoding: chunked"]),
    "an unknown coding": (b"501", [b"host: x", b"transfer-encoding: gzip"]),
    "identity": (b"501", [b"host: x", b"transfer-encoding: identity"]),
    "a coding and a length": (b"400", [b"host: x", b"transfer-encoding: chunked", b"content-length: 5"]),
    "two lengths": (b"400", [b"host: x", b"content-length: 4", b"content-length: 5"]),
    "no host for a websocket": (b"400", [OFFER]),
}


@pytest.mark.parametrize("case", BAD_HEADS)
def test_ambiguous_request_head_is_refused(quick: Gateway, case: str) -> None:
    status, lines = BAD_HEADS[case]
    whole = b"content-length: 2" if all(line.startswith((b"host", b"a:")) for line in lines) else b"b: c"
    answer = quick.ask(head(b"connection: close", whole, *lines, request=b"POST /work HTTP/1.1") + b"{}")
    assert answer[9:12] == status, answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("request_line", "lines", "status"),
    [
        (b"POST /work HTTP/1.0", (b"transfer-encoding: chunked",), b"400"),
        (b"POST /work HTTP/2.0", (b"host: x",), b"505"),
        (b"CONNECT x:1 HTTP/1.1", (b"host: x",), b"501"),
    ],
)
def test_proxy_request_is_refused(quick: Gateway, request_line: bytes, lines: tuple[bytes, ...], status: bytes) -> None:
    assert quick.ask(head(*lines, request=request_line))[9:12] == status


@pytest.mark.parametrize("host", [b"", b"x", b"x:80", b"[::1]:80", b"a_b.example-1.com", b"1.2.3.4"])
def test_valid_host_is_accepted(quick: Gateway, host: bytes) -> None:
    assert quick.ask(HEALTHY.replace(b"host: x", b"host: " + host)).startswith(b"HTTP/1.1 200")


@given(st.lists(st.sampled_from([(b"host", b"x"), (b"host", b"a b"), (b"transfer-encoding", b"Chunked"), (b"transfer-encoding", b"br")])))
def test_only_an_unambiguous_head_is_accepted(headers: list[tuple[bytes, bytes]]) -> None:
    good = (
        headers.count((b"host", b"x")) == 1 and len(headers) <= 2 and headers.count((b"transfer-encoding", b"Chunked")) == len(headers) - 1
    )
    try:
        check_head(b"POST", "1.1", headers)
    except Refused:
        assert not good
    else:
        assert good


@given(st.binary())
def test_accepted_host_has_no_delimiter(value: bytes) -> None:
    if HOST.fullmatch(value):
        assert not set(value) & set(b' /?#@\\"<>\r\n\t\0')


@pytest.mark.parametrize("more", [b"", b"connection: keep-alive\r\n"])
def test_http_1_0_client_gets_no_chunked_encoding(quick: Gateway, more: bytes) -> None:
    answer = quick.ask(post({"stream": True}, more, version=b"1.0").replace(b"host: x\r\n", b""))
    start, _, body = answer.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in start
    assert body == b'data: begun\n\ndata: {"stream": true}\n\n'


def test_http_1_0_client_gets_a_content_length(quick: Gateway) -> None:
    answer = quick.ask(post({"a": 1}, version=b"1.0"))
    assert b"content-length: 7\r\n" in answer
    assert answer.endswith(b'{"a":1}')


def dechunked(body: bytes) -> bytes:
    content = b""
    while True:
        size, _, body = body.partition(b"\r\n")
        if not int(size, 16):
            return content
        content, body = content + body[: int(size, 16)], body[int(size, 16) + 2 :]


@pytest.mark.parametrize("stream", [False, True])
def test_half_closed_connection_gets_its_response(slow: Gateway, stream: bool) -> None:
    """As `nc -N` does: the FIN comes long before the answer, and once before it is begun."""
    with slow.connect() as connection:
        connection.sendall(post({"stream": stream, "fill": 4 << 20}))
        connection.shutdown(socket.SHUT_WR)
        wait_for(lambda: slow.running)
        time.sleep(0.3)  # several looks at whether the client has left
        assert slow.running
        slow.go.set()
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert answer.read().count(b"x") == 4 << 20
        assert read_all(connection) == b""
    assert not slow.cancelled


def test_half_close_does_not_end_a_stream(slow: Gateway) -> None:
    with slow.connect() as connection:
        connection.sendall(post({"stream": True}))
        answer = b""
        while b"begun" not in answer:
            answer += connection.recv(4096)
        connection.shutdown(socket.SHUT_WR)
        time.sleep(0.3)
        slow.go.set()
        answer += read_all(connection)
    assert dechunked(answer.partition(b"\r\n\r\n")[2]) == b'data: begun\n\ndata: {"stream": true}\n\n'
    assert not slow.cancelled


def raw(port: int, content: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(content)
        time.sleep(0.3)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_disconnect_cancels_the_request(slow: Gateway, stream: bool, version: bytes) -> None:
    raw(slow.port, post({"stream": stream}, version=version))
    wait_for(lambda: slow.cancelled == ["work"], 5)
    wait_for(lambda: slow.connections == 0, 5)


@pytest.mark.parametrize("stream", [False, True])
def test_killed_curl_cancels_the_request(slow: Gateway, stream: bool) -> None:
    url = f"http://127.0.0.1:{slow.port}/work"
    command = ("curl", "-sN", "--http1.1", "-H", "content-type: application/json", "-d", json.dumps({"stream": stream}), url)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as curl:
        wait_for(lambda: slow.running)
        curl.terminate()
        wait_for(lambda: slow.cancelled == ["work"], 5)


def test_http_client_that_closes_cancels_the_request(slow: Gateway) -> None:
    client = http.client.HTTPConnection("127.0.0.1", slow.port, timeout=0.3)
    client.request("POST", "/work", json.dumps({}), {"content-type": "application/json"})
    with pytest.raises(TimeoutError):
        client.getresponse()
    client.close()
    wait_for(lambda: slow.cancelled == ["work"], 5)


def test_sdk_timeout_cancels_the_request(slow: Gateway) -> None:
    client = OpenAI(base_url=f"http://127.0.0.1:{slow.port}", api_key="none", max_retries=0, timeout=0.5)
    with pytest.raises(Exception, match="timed out"):
        client.post("/work", cast_to=object, body={})
    wait_for(lambda: slow.cancelled == ["work"], 5)


@pytest.mark.parametrize("reset", [False, True])
def test_disconnect_after_a_half_close_ends_the_request(slow: Gateway, reset: bool) -> None:
    """A reset is noticed at once. A close is noticed with the next bytes: a stream's comment, which may come before the work ends."""
    for stream in (False, True):
        with slow.connect() as connection:
            connection.sendall(post({"stream": stream}))
            connection.shutdown(socket.SHUT_WR)
            wait_for(lambda: slow.running)
            time.sleep(0.3)
            if reset:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        if not reset:
            slow.go.set()
        wait_for(lambda: not slow.running, 5)
        wait_for(lambda: slow.connections == 0, 5)
        slow.go.clear()
    assert len(slow.cancelled) == 2 if reset else len(slow.cancelled) <= 1


def test_half_closed_client_that_reads_nothing_is_cut_off() -> None:
    with gateway() as running:
        running.go.set()
        with running.connect(buffer=4096) as connection:
            connection.sendall(post({"fill": 20 << 20}))
            connection.shutdown(socket.SHUT_WR)
            wait_for(lambda: running.server.server_state.total_requests == 1)
            wait_for(lambda: running.connections == 0)


def test_request_in_pieces_is_the_same_request(quick: Gateway) -> None:
    for first, second in itertools.product(range(1, 120, 40), repeat=2):
        with quick.connect() as connection:
            connection.sendall(HEALTHY[:first])
            connection.sendall(HEALTHY[first : first + second])
            connection.sendall(HEALTHY[first + second :])
            assert read_all(connection).endswith(b'{"a":1}')
