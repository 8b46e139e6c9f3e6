"""WebSockets that strangers open: what they send is counted while it comes, and bounded in bytes, frames and time."""

import json
import socket
import time
from collections.abc import Iterator

import pytest
from helpers.connections import Gateway, closing_code, frame, gateway, rss
from helpers.waiting import wait_for
from websockets.sync.client import connect

pytestmark = pytest.mark.slow

TEXT, BINARY, CONTINUATION, PING = 1, 2, 0, 9
POLICY, TOO_BIG, TRY_LATER = 1008, 1009, 1013
MB = 1 << 20
MESSAGE = json.dumps({"a": 1}).encode()


@pytest.fixture(params=["asyncio", "uvloop"])
def patient(request: pytest.FixtureRequest) -> Iterator[Gateway]:
    """Its clients have time; its work is done at once."""
    with gateway(request.param, body_timeout=20, send_timeout=20, max_body_mb=8, max_bodies_mb=20) as running:
        running.go.set()
        yield running


@pytest.fixture
def quick() -> Iterator[Gateway]:
    with gateway() as running:
        running.go.set()
        yield running


def url(gateway: Gateway) -> str:
    return f"ws://127.0.0.1:{gateway.port}/socket"


def test_unfinished_messages_share_one_memory_limit(patient: Gateway) -> None:
    before = rss()
    sockets = [patient.open_websocket() for _ in range(12)]
    try:
        for each in sockets[:2]:
            each.sendall(frame(BINARY, bytes(7 * MB), size=8 * MB))
        wait_for(lambda: patient.bodies.bytes >= 14 * MB)
        assert patient.bodies.bytes <= 14 * MB + 1000
        for each in sockets[2:]:
            try:
                each.sendall(frame(BINARY, bytes(7 * MB), size=8 * MB))
                assert closing_code(each) == TRY_LATER
            except ConnectionError:
                pass  # the server does not read for ever what it refuses
        assert patient.bodies.bytes <= 20 * MB
        assert rss() - before < 120 * MB
    finally:
        for each in sockets:
            each.close()
    wait_for(lambda: patient.bodies.bytes == 0)


@pytest.mark.parametrize("fragment", [100_000, 5000])
def test_fragments_count_as_one_message(patient: Gateway, fragment: int) -> None:
    with patient.open_websocket() as connection:
        connection.sendall(frame(TEXT, b" " * fragment, fin=False))
        for _ in range(3 * MB // fragment):
            connection.sendall(frame(CONTINUATION, b" " * fragment, fin=False))
        wait_for(lambda: patient.bodies.bytes >= 3 * MB)
        connection.sendall(frame(CONTINUATION, b'{"a": 1}'))
        assert b'"length"' in connection.recv(4096)
        wait_for(lambda: patient.bodies.bytes == 0)


@pytest.mark.parametrize("whole", [True, False])
def test_too_large_message_closes_with_its_own_code(patient: Gateway, whole: bool) -> None:
    with patient.open_websocket() as connection:
        if whole:
            connection.sendall(frame(TEXT, b"", size=9 * MB) + bytes(100_000))
        else:
            for opcode in (TEXT, *[CONTINUATION] * 8):
                connection.sendall(frame(opcode, bytes(MB), fin=False))
        assert closing_code(connection) == TOO_BIG
    wait_for(lambda: patient.bodies.bytes == 0)


def test_message_counts_until_it_is_answered() -> None:
    with gateway(body_timeout=20) as running, connect(url(running), compression=None) as client:
        client.send(json.dumps({"a": "x" * 1000}))
        wait_for(lambda: running.running)
        assert running.bodies.bytes >= 1000
        running.go.set()
        assert json.loads(client.recv(timeout=20))["length"]
        wait_for(lambda: running.bodies.bytes == 0)


@pytest.mark.parametrize(
    "data", [frame(CONTINUATION, b"", fin=False), frame(CONTINUATION, b" ", fin=False), frame(PING), frame(PING, bytes(125))]
)
def test_endless_small_frames_close_the_connection(patient: Gateway, data: bytes) -> None:
    with patient.open_websocket() as connection:
        connection.sendall(frame(TEXT, b"", fin=False) if data[0] & 15 == CONTINUATION else b"")
        for _ in range(50):
            connection.sendall(data * 1000)
        assert closing_code(connection) == POLICY
    wait_for(lambda: patient.connections == 0)


def test_message_of_many_ordinary_fragments_is_accepted(patient: Gateway) -> None:
    with connect(url(patient), compression=None) as client:
        client.send(iter([" " * 2048] * 1300 + ['{"a": 1}']))
        assert json.loads(client.recv(timeout=20)) == {"length": 8, "fill": ""}


def test_ping_gets_a_pong(patient: Gateway) -> None:
    with connect(url(patient), compression=None) as client:
        for _ in range(300):
            client.ping()
        client.send('{"a": 1}')
        assert json.loads(client.recv(timeout=20)) == {"length": 8, "fill": ""}
        assert client.ping().wait(20)


def test_client_that_reads_nothing_is_cut_off() -> None:
    with gateway(body_timeout=20, send_timeout=2) as running, running.open_websocket(buffer=4096) as connection:
        connection.sendall(frame(TEXT, json.dumps({"fill": 20 * MB}).encode()))
        wait_for(lambda: running.running)
        running.go.set()
        wait_for(lambda: running.connections == 0)


def test_unfinished_message_times_out(quick: Gateway) -> None:
    with quick.open_websocket() as connection:
        connection.sendall(frame(TEXT, b"", size=100))
        for _ in range(4):
            time.sleep(0.2)
            connection.sendall(b"a")
        assert closing_code(connection) in (1000, POLICY)
    wait_for(lambda: quick.connections == 0)


def test_unfinished_message_times_out_while_another_is_answered() -> None:
    """Where no other timer runs."""
    with gateway(max_body_mb=8) as running, running.open_websocket() as connection:
        connection.sendall(frame(TEXT, MESSAGE))
        wait_for(lambda: running.running)
        connection.sendall(frame(TEXT, bytes(MB), size=2 * MB))
        assert closing_code(connection) == POLICY
        wait_for(lambda: running.cancelled == ["work"])
        wait_for(lambda: running.bodies.bytes == 0)


@pytest.mark.parametrize("between", [b"", frame(PING)])
def test_second_message_at_once_closes_and_frees_memory(patient: Gateway, between: bytes) -> None:
    with patient.open_websocket() as connection:
        connection.sendall((frame(TEXT, MESSAGE) + between) * 50)
        data = connection.recv(1 << 16)
        while not data.endswith(b"one message at a time"):
            more = connection.recv(1 << 16)
            assert more, data
            data += more
    wait_for(lambda: patient.connections == 0)
    wait_for(lambda: patient.bodies.bytes == 0)


def test_next_message_may_follow_the_last_answer_at_once() -> None:
    """Before this side knows that the answer is whole. The client was cut off, now and then, when it was quick."""
    early = json.dumps({"early": True})
    with gateway(body_timeout=20) as running, connect(url(running)) as client:
        client.send(early)
        assert client.recv(20) == early.replace(" ", "")
        before = running.bodies.bytes
        client.send(early)
        wait_for(lambda: running.bodies.bytes > before)
        running.go.set()
        assert client.recv(20) == early.replace(" ", "")
        client.send("{}")
        assert json.loads(client.recv(20))["length"] == 2


def test_frame_before_the_handshake_is_refused(patient: Gateway) -> None:
    with patient.connect() as connection:
        request = b"GET /socket HTTP/1.1\r\nhost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
        connection.sendall(request + frame(TEXT, MESSAGE))
        assert connection.recv(100).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize("closing", ["close", "fin", "reset"])
def test_websocket_disconnect_cancels_the_request(closing: str) -> None:
    with gateway(body_timeout=20) as running:
        connection = running.open_websocket()
        connection.sendall(frame(TEXT, MESSAGE))
        wait_for(lambda: running.running)
        if closing == "close":
            connection.sendall(frame(8, b"\x03\xe8"))
        elif closing == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        if closing != "close":
            connection.close()
        wait_for(lambda: running.cancelled == ["work"], 5)
        wait_for(lambda: running.connections == 0, 5)
        connection.close()


def test_invalid_utf8_is_an_error_without_a_traceback(patient: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    with patient.open_websocket() as connection:
        connection.sendall(frame(TEXT, b"\xff\xfe"))
        assert b"error" in connection.recv(4096)
    assert not [record for record in caplog.records if record.exc_info]


def test_invalid_frame_closes_with_a_reason(quick: Gateway) -> None:
    for data in (b"\x83\x80\0\0\0\0", b"\x81\x01a", frame(CONTINUATION, b"a"), b"\xf1\x80\0\0\0\0"):
        with quick.open_websocket() as connection:
            connection.sendall(data)
            assert closing_code(connection) == 1002
    wait_for(lambda: quick.connections == 0)
