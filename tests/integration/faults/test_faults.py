"""Faults in a real server: each request ends with a result or an error, nothing stays behind, and the next request is answered."""

import asyncio
import contextlib
import json
import os
import random
import select
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.client import HTTPResponse
from typing import Any

import httpx
import psutil
import pytest
from helpers.processes import descendants
from helpers.requests import body, image
from helpers.server import START_TIMEOUT, Server, send_post, serve, wait_until_ready
from helpers.waiting import wait_for

from llava_gateway.demo.images import describe

CHAT = "/v1/chat/completions"
GRID = ("red", "blue", "green", "orange")
RUNNING, QUEUED = 32, 64
FLAGS = (
    "--engine-timeout", "6", "--head-timeout", "2", "--body-timeout", "2", "--send-timeout", "3", "--shutdown-timeout", "5",
    "--request-timeout", "60", "--max-running", str(RUNNING), "--max-queued", str(QUEUED), "--usage-log", "/dev/full",
    "--max-num-seqs", "64", "--max-bodies-mb", "1024",
)  # fmt: skip
STREAMS = 32

Outcome = tuple[str, Any]
"""The end of a request: ("finished", finish_reason), ("error", code of the last event), ("refused", status) or ("closed", exception)."""


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("faulty")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder / "compiled"))
        with serve(folder, *FLAGS) as started:
            yield started


def stream(server: Server, **fields: Any) -> Outcome:
    """Stream an answer, and return how the request ended."""
    asked = body("Hello", stream=True, ignore_eos=True, **{"max_tokens": 3000} | fields)
    try:
        with httpx.stream("POST", server.url + CHAT, json=asked, timeout=120) as answer:
            if answer.status_code != 200:
                answer.read()
                assert "retry-after" in answer.headers, answer.text
                return "refused", answer.status_code
            *_, last, done = (line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: "))
    except httpx.TransportError as error:
        return "closed", type(error).__name__
    assert done == "[DONE]"
    event = json.loads(last)
    return ("error", event["error"]["code"]) if "error" in event else ("finished", event["choices"][0]["finish_reason"])


def is_idle(server: Server) -> bool:
    """Return whether no request holds a slot, memory or the engine."""
    names = (
        "llava_requests_inside ",
        "llava_requests_running ",
        "llava_requests_queued ",
        "llava_body_bytes ",
        "llava_answer_bytes ",
        "llava_image_file_bytes ",
        "vllm:num_requests_running",
    )
    return all(server.metric(name) == 0 for name in names)


def is_right(server: Server) -> bool:
    """Return whether the server describes an image correctly."""
    answer = httpx.post(server.url + CHAT, json=body(image(GRID), "Describe this image."), timeout=60)
    return answer.status_code == 200 and bool(answer.json()["choices"][0]["message"]["content"] == describe([GRID]))


def engine_processes(server: Server) -> list[psutil.Process]:
    return descendants(server.process.pid, "EngineCore")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_dead_or_hanging_engine_ends_streams_and_restarts(faulty: Server, number: signal.Signals) -> None:
    restarts, generated = faulty.metric("llava_engine_restarts"), faulty.engine_tokens()
    (engine,) = engine_processes(faulty)
    with ThreadPoolExecutor(STREAMS) as pool:
        streams = [pool.submit(stream, faulty) for _ in range(STREAMS)]
        wait_for(lambda: faulty.metric("llava_requests_running ") == STREAMS and faulty.engine_tokens() > generated + 10 * STREAMS)
        os.kill(engine.pid, number)
        struck = time.monotonic()
        outcomes = Counter(each.result() for each in streams)
    assert time.monotonic() - struck < 40  # --engine-timeout is 6 s; a request that hangs would end after 60 s
    assert set(outcomes) == {("error", "engine_dead")}, outcomes
    assert httpx.get(f"{faulty.url}/ready", timeout=60).status_code == 503
    refusal = httpx.post(faulty.url + CHAT, json=body("Hello"), timeout=60)
    assert refusal.status_code == 503
    assert refusal.json()["error"]["code"] in ("engine_dead", "engine_restarting")  # the gateway may just have noticed
    assert int(refusal.headers["retry-after"]) >= 1
    assert httpx.get(f"{faulty.url}/health", timeout=60).status_code == 200
    wait_for(lambda: is_right(faulty), 120)
    assert not engine.is_running()
    assert faulty.metric("llava_engine_restarts") == restarts + 1
    assert httpx.get(f"{faulty.url}/ready", timeout=60).status_code == 200
    wait_for(lambda: is_idle(faulty))


def is_shutting_down(server: Server) -> bool:
    answer = httpx.get(f"{server.url}/ready", timeout=60)
    return answer.status_code == 503 and bool(answer.json()["error"]["code"] == "shutting_down")


def head_of(content: bytes, more: str = "") -> bytes:
    """Return the head of a chat request with this body. `more`: more header lines."""
    head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{more}"
    return f"{head}content-length: {len(content)}\r\n\r\n".encode()


@pytest.mark.slow
def test_two_thousand_concurrent_requests_are_answered_or_refused(faulty: Server) -> None:
    """There are 96 slots: requests beyond them are refused at once, all others are answered, and none waits forever."""
    content = json.dumps(body("Hello", max_tokens=50)).encode()
    host, port = faulty.address

    async def ask() -> int:
        for _ in range(50):  # a connection beyond the listener's backlog is tried again
            with contextlib.suppress(ConnectionError):
                reader, writer = await asyncio.open_connection(host, port)
                writer.write(head_of(content, "connection: close\r\n") + content)
                answer = await reader.read()
                writer.close()
                if answer:
                    return int(answer.split(b" ", 2)[1])
            await asyncio.sleep(0.1)
        return 0

    async def ask_all() -> Counter[int]:
        async with asyncio.timeout(120):
            return Counter(await asyncio.gather(*(ask() for _ in range(2000))))

    statuses = asyncio.run(ask_all())
    assert set(statuses) == {200, 429}, statuses
    assert statuses[200] >= RUNNING + QUEUED
    wait_for(lambda: is_idle(faulty))
    assert is_right(faulty)


def test_one_request_may_have_more_prompts_than_slots(faulty: Server) -> None:
    asked = {"model": "llava-demo", "prompt": ["Hello"] * 128, "max_tokens": 2}
    answer = httpx.post(f"{faulty.url}/v1/completions", json=asked, timeout=60)
    assert [choice["index"] for choice in answer.json()["choices"]] == list(range(128))


def test_five_hundred_random_disconnects_leave_nothing_behind(faulty: Server) -> None:
    host, port = faulty.address
    contents = [
        json.dumps(body(image((first, "red", "blue", "white")), "Hello", max_tokens=200, ignore_eos=True, stream=streamed)).encode()
        for first in ("red", "green", "blue")
        for streamed in (True, False)
    ]

    async def disconnect(rng: random.Random) -> None:
        content = rng.choice(contents)
        await asyncio.sleep(rng.random() * 5)
        with contextlib.suppress(ConnectionError):
            _, writer = await asyncio.open_connection(host, port)
            request = head_of(content) + content
            writer.write(request[: len(request) if rng.random() < 0.8 else rng.randrange(len(request))])
            await asyncio.sleep(rng.random() * rng.choice((0.01, 0.3, 2)))
            writer.transport.abort()

    async def ask_all() -> None:
        await asyncio.gather(*(disconnect(random.Random(number)) for number in range(500)))

    asyncio.run(ask_all())
    wait_for(lambda: is_idle(faulty))
    assert is_right(faulty)
    assert faulty.metric("llava_client_disconnects_total") > 100


def connect(server: Server) -> socket.socket:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(60)
    connection.connect(server.address)
    return connection


def test_slow_headers_are_cut_off(faulty: Server) -> None:
    """Half of fifty connections are silent, the others send a byte now and then (Slowloris). --head-timeout is 2 s."""
    connections = [connect(faulty) for _ in range(50)]
    try:
        for connection in connections[::2]:
            connection.sendall(b"POST / HTTP/1.1\r\nx-a: ")
        start = time.monotonic()
        while time.monotonic() - start < 2.5:
            for connection in connections[::2]:
                with contextlib.suppress(OSError):
                    connection.sendall(b"b")
            time.sleep(0.25)
        for connection in connections:
            with contextlib.suppress(ConnectionError):
                assert connection.recv(100) == b""
        assert time.monotonic() - start < 40
    finally:
        for connection in connections:
            connection.close()
    assert is_right(faulty)


CHUNKED = head_of(b"").replace(b"content-length: 0", b"transfer-encoding: chunked") + b"0\r\n"
"""The start of a request, without the end of its trailers."""
HEALTH = b"GET /health HTTP/1.1\r\nhost: localhost\r\n"


@pytest.mark.parametrize("begun", [HEALTH, CHUNKED])
@pytest.mark.parametrize("more", [b"a:b\r\n" * 1000, b"a" * 5000])
def test_endless_headers_are_refused_without_memory_growth(faulty: Server, begun: bytes, more: bytes) -> None:
    """The headers are many lines or one, before the body or, as trailers, after it."""
    rss = psutil.Process(faulty.process.pid).memory_info().rss
    with connect(faulty) as connection:
        connection.sendall(begun + b"x: ")
        with contextlib.suppress(ConnectionError):
            for _ in range(4000):
                connection.sendall(more)
        with contextlib.suppress(ConnectionError):
            answer = connection.recv(1000)
            assert answer[:12] in (b"", b"HTTP/1.1 431", b"HTTP/1.1 400")
    assert psutil.Process(faulty.process.pid).memory_info().rss - rss < 30 << 20
    wait_for(lambda: is_idle(faulty))


@pytest.mark.parametrize("next_request", [HEALTH + b"\r\n", HEALTH + b"connection: upgrade\r\nupgrade: websocket\r\n\r\n"])
def test_pipelined_request_does_not_hold_a_slot_after_a_disconnect(faulty: Server, next_request: bytes) -> None:
    content = json.dumps(body("Hello", max_tokens=3500, ignore_eos=True)).encode()
    generated = faulty.engine_tokens()
    with connect(faulty) as connection:
        connection.sendall(head_of(content) + content + next_request)
        wait_for(lambda: faulty.metric("llava_requests_running ") == 1)
    wait_for(lambda: is_idle(faulty))
    assert faulty.engine_tokens() < generated + 3500


def test_pipelining_client_gets_only_the_first_answer(faulty: Server) -> None:
    content = json.dumps(body("Hello", max_tokens=20)).encode()
    with connect(faulty) as connection:
        connection.sendall((head_of(content) + content) * 2)
        answer = connection.makefile("rb").read()
    assert answer.count(b"HTTP/1.1 200") == 1
    assert b"connection: close" in answer


def test_http2_upgrade_offer_is_ignored(faulty: Server) -> None:
    content = json.dumps(body("Hello", max_tokens=2)).encode()
    offer = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAAAAMAAAAAAAQBAAAAAAUAAEAAAAYABgAA\r\n"
    with connect(faulty) as connection:
        connection.sendall(head_of(content, offer) + content)
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")


def test_announced_bodies_reserve_no_memory(faulty: Server) -> None:
    announced = head_of(b"").replace(b"content-length: 0", b"content-length: 60000000")
    connections = [connect(faulty) for _ in range(20)]  # together more than --max-bodies-mb
    try:
        for connection in connections:
            connection.sendall(announced)
        assert is_right(faulty)
    finally:
        for connection in connections:
            connection.close()
    wait_for(lambda: is_idle(faulty))


@pytest.mark.parametrize("n", [1, 3])
def test_tokens_of_a_disconnected_client_are_counted(faulty: Server, n: int) -> None:
    """They are counted also before the first byte of the response."""
    generated = faulty.engine_tokens()
    before = {kind: faulty.metric(f'llava_tokens_total{{kind="{kind}"') for kind in ("image", "completion")}
    asked = body(image(GRID), "Hello", max_tokens=3000, ignore_eos=True, n=n, temperature=1)
    with send_post(faulty, CHAT, asked):
        wait_for(lambda: faulty.engine_tokens() > generated + 40 * n)
    wait_for(lambda: is_idle(faulty))
    assert faulty.metric('llava_tokens_total{kind="image"') == before["image"] + 576
    assert faulty.metric('llava_tokens_total{kind="completion"') >= before["completion"] + 20 * n


def test_slow_body_gets_408(faulty: Server) -> None:
    with connect(faulty) as connection:
        connection.sendall(head_of(bytes(1000)))
        while not select.select([connection], [], [], 0.25)[0]:
            connection.sendall(b" ")
        answer = HTTPResponse(connection)
        answer.begin()
        assert answer.status == 408
        assert b'"body_timeout"' in answer.read()
    wait_for(lambda: is_idle(faulty))


@pytest.mark.slow
def test_stalled_readers_are_cut_off(faulty: Server) -> None:
    """The clients read nothing, and the log probabilities are more than all buffers on the way can hold."""
    content = json.dumps(body("Hello", stream=True, ignore_eos=True, max_tokens=3500, n=4, temperature=1, logprobs=True, top_logprobs=20))
    disconnects = faulty.metric("llava_client_disconnects_total")
    rss = psutil.Process(faulty.process.pid).memory_info().rss
    connections = [connect(faulty) for _ in range(4)]
    try:
        for connection in connections:
            connection.sendall(head_of(content.encode()) + content.encode())
        wait_for(lambda: faulty.metric("llava_requests_running ") == 4)
        wait_for(lambda: is_idle(faulty), 120)
    finally:
        for connection in connections:
            connection.close()
    assert faulty.metric("llava_client_disconnects_total") == disconnects + 4
    assert not [*(faulty.log.parent / "compiled").rglob("*.*")]  # nothing was compiled, as all requests would wait for that
    assert psutil.Process(faulty.process.pid).memory_info().rss - rss < 200 << 20
    assert is_right(faulty)


def test_full_disk_costs_no_answer(faulty: Server) -> None:
    before = faulty.metric("llava_usage_log_failures_total")
    assert is_right(faulty)
    wait_for(lambda: faulty.metric("llava_usage_log_failures_total") == before + 1)
    assert faulty.log.read_text().count("The usage log cannot be written") == 1


def test_sigterm_drains_the_server(faulty: Server) -> None:
    """After SIGTERM, short answers finish, long ones end with an error, and new requests are refused."""
    children = psutil.Process(faulty.process.pid).children(recursive=True)
    with ThreadPoolExecutor(3) as pool:
        short, long = pool.submit(stream, faulty, max_tokens=60), pool.submit(stream, faulty, max_tokens=3900)
        slow = pool.submit(stream, faulty, max_tokens=3900, logprobs=True, top_logprobs=20)
        wait_for(lambda: faulty.metric("llava_requests_running ") == 3)
        faulty.process.send_signal(signal.SIGTERM)
        start = time.monotonic()
        wait_for(lambda: is_shutting_down(faulty))
        assert httpx.get(f"{faulty.url}/health", timeout=60).status_code == 200
        assert stream(faulty) == ("refused", 503)
        assert short.result() == ("finished", "length")
        assert long.result() == slow.result() == ("error", "shutting_down")
    assert time.monotonic() - start > 4.5  # --shutdown-timeout is 5 s
    assert faulty.process.wait(60) == 0
    assert not psutil.wait_procs(children, timeout=30)[1]


@pytest.fixture(scope="module")
def doomed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    """Servers that load, one for each test that ends one. They start at once, since a start is mostly imports, on one core."""
    with ExitStack() as servers:
        yield [servers.enter_context(serve(tmp_path_factory.mktemp("doomed"), wait=False, group=True)) for _ in range(3)]


@pytest.mark.slow
def test_kill_during_loading_leaves_no_process(doomed: list[Server]) -> None:
    server = doomed[0]
    wait_for(lambda: bool(engine_processes(server)), START_TIMEOUT)
    children = psutil.Process(server.process.pid).children(recursive=True)
    time.sleep(1)  # a moment in the middle of the engine's start
    server.process.kill()
    assert not psutil.wait_procs(children, timeout=60)[1]


@pytest.mark.slow
def test_second_ctrl_c_cuts_off_requests(doomed: list[Server]) -> None:
    """A terminal sends SIGINT to every process of the group. The engine must not end at the first one."""
    server = doomed[1]
    wait_until_ready(server)
    with ThreadPoolExecutor(1) as pool:
        children = psutil.Process(server.process.pid).children(recursive=True)
        running = pool.submit(stream, server, max_tokens=3900)
        wait_for(lambda: server.metric("llava_requests_running ") == 1)
        with connect(server) as uploading:
            uploading.sendall(head_of(bytes(1000)) + b" ")
            wait_for(lambda: server.metric("llava_requests_inside ") == 2)
            os.killpg(server.process.pid, signal.SIGINT)
            wait_for(lambda: is_shutting_down(server))
            assert not running.done()
            os.killpg(server.process.pid, signal.SIGINT)
            assert running.result(20) == ("error", "shutting_down")
            answer = uploading.makefile("rb").read()
            assert answer.startswith(b"HTTP/1.1 503")
            assert b'"shutting_down"' in answer
        assert server.process.wait(60) == 0
        assert not psutil.wait_procs(children, timeout=30)[1]
    assert "resource_tracker" not in server.log.read_text(), "Python warns of semaphores of the engine's process"


@pytest.mark.slow
def test_kill_leaves_no_engine_behind(doomed: list[Server]) -> None:
    """Neither its engine nor any other process may outlive it by more than ten seconds."""
    server = doomed[2]
    wait_until_ready(server)
    with ThreadPoolExecutor(4) as pool:
        children = psutil.Process(server.process.pid).children(recursive=True)
        assert any("EngineCore" in child.name() for child in children)
        streams = [pool.submit(stream, server) for _ in range(4)]
        wait_for(lambda: server.metric("llava_requests_running ") == 4)
        server.process.kill()
        assert not psutil.wait_procs(children, timeout=60)[1]
        assert {each.result()[0] for each in streams} == {"closed"}
