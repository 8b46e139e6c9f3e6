"""What bodies make the server hold is what it says it holds, and stays within what it may hold: by the memory that Linux counts."""

import os
import re
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import orjson
import pybase64
import pytest
from helpers.server import free_port
from helpers.waiting import wait_for

from llava_gateway.demo.images import data_uri, draw, encode

MIB = 1 << 20
LIMIT = 512
"""MiB that all bodies may take together."""
SLACK = 96
"""MiB for what is not a body: the heap that one parsed body leaves behind in pieces, threads, tokenizers and pictures being decoded."""
CHAT, COMPLETION, WEBUI = "/v1/chat/completions", "/v1/completions", "/api/v1/generate"
PICTURE = data_uri(encode(draw(("red", "blue", "green", "orange"))))
PROMPT = b'{"model":"llava-demo","messages":[{"role":"user","content":"Hi"}],'


def chat(content: object, **fields: object) -> bytes:
    return orjson.dumps({"model": "llava-demo", "messages": [{"role": "user", "content": content}], "max_tokens": 4} | fields)


def image(url: str) -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": url}}


def objects(count: int) -> bytes:
    return b"[" + b",".join([b"{}"] * count) + b"]"


def escaped(count: int) -> bytes:
    """A picture of so many percent escapes, none of them needed."""
    return chat([image("data:image/png;base64," + "%41" * count)])


def padded() -> str:
    """A whole picture in 5 MB: what follows a PNG's end is not read."""
    return "data:image/png;base64," + pybase64.b64encode(encode(draw(("red",) * 4)) + b"\0" * 3_700_000).decode()


BODIES: dict[str, tuple[str, int, bytes]] = {
    "percent-encoded picture": (CHAT, 1, escaped(9_600_000)),
    "two percent-encoded pictures": (CHAT, 1, chat([image("data:image/png;base64," + "%41" * 9_600_000)] * 2)),
    "pictures with white space": (CHAT, 4, chat([image("data:image/png;base64," + "QUFB\\r\\n" * 2_000_000)])),
    "ignored objects": (CHAT, 12, PROMPT + b'"metadata":' + objects(2_000_000) + b"}"),
    "fewer ignored objects": (CHAT, 12, PROMPT + b'"metadata":' + objects(140_000) + b"}"),
    "ignored lists of lists": (CHAT, 12, PROMPT + b'"metadata":[' + b",".join([b"[[[[[1]]]]]"] * 25_000) + b"]}"),
    "ignored strings": (CHAT, 12, PROMPT + b'"user":[' + b",".join([b'"abcd"'] * 590_000) + b"]}"),
    "ignored keys": (CHAT, 12, PROMPT + b'"user":{' + b",".join(b'"%d":%d' % (n, n) for n in range(149_000)) + b"}}"),
    "objects in a message": (CHAT, 12, chat([{"type": "text", "text": "Hi", "extra": orjson.Fragment(objects(140_000))}])),
    "one emoji in 54 MB": (CHAT, 4, chat("😀" + "a" * 54_000_000)),
    "one emoji in each MB, and quotes": (CHAT, 4, chat('😀"' + "a" * 1_000_000 + '"').replace(b"aaaa", b"aaaaaaaaaaaa")),
    "one escaped emoji": (CHAT, 4, b'{"messages":"' + b"\\ud83d\\ude00" + b"a" * 40_000_000 + b'"}'),
    "many ignored texts": (CHAT, 12, chat("Hi", user=["😀" + "a" * 3_000_000] * 4)),
    "a wide logit_bias": (CHAT, 8, chat("Hi", logit_bias={str(token): 1 for token in range(140_000)})),
    "a large schema": (
        CHAT,
        8,
        chat("Hi", response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"x": [{}] * 140_000}}}),
    ),
    "many messages": (CHAT, 16, orjson.dumps({"model": "llava-demo", "messages": [{"role": "user", "content": "a b" * 10}] * 2000})),
    "many small pictures": (CHAT, 16, chat([image(PICTURE)] * 1000)),
    "large pictures": (CHAT, 16, chat([image(padded())])),
    "duplicate keys": (CHAT, 12, PROMPT + b",".join([b'"user":"' + b"a" * 3_000_000 + b'"'] * 15) + b"}"),
    "token ids": (COMPLETION, 8, orjson.dumps({"model": "llava-demo", "prompt": [[5] * 4000] * 128, "max_tokens": 4})),
    "an emoji beside a picture": (WEBUI, 8, orjson.dumps({"prompt": f'😀<img src="{padded()}">'})),
    "one emoji in 54 MB of a dialect": (WEBUI, 4, orjson.dumps({"prompt": "😀" + "a" * 54_000_000})),
    "deep nesting": (CHAT, 8, PROMPT + b'"metadata":' + b"[" * 140_000 + b"]" * 140_000 + b"}"),
}


@dataclass(frozen=True)
class Server:
    process: subprocess.Popen[bytes]
    port: int

    def status(self, name: str) -> int:
        """MiB, as Linux counts them."""
        found = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text())
        assert found
        return int(found[1]) >> 10

    def forget_peak(self) -> None:
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def gauge(self, name: str) -> float:
        page = httpx.get(f"http://127.0.0.1:{self.port}/metrics", timeout=60).text
        found = re.search(rf"^{name} (\S+)$", page, re.MULTILINE)
        assert found
        return float(found[1])


@pytest.fixture(scope="module")
def silent() -> Iterator[Server]:
    port = free_port()
    environment = os.environ | {"LLAVA_MAX_BODIES_MB": str(LIMIT), "LLAVA_MAX_RUNNING": "200", "LLAVA_BODY_TIMEOUT": "100"}
    process = subprocess.Popen([sys.executable, Path(__file__).parents[2] / "helpers" / "silent_engine.py", str(port)], env=environment)
    server = Server(process, port)
    try:
        wait_for(lambda: is_ready(server), 120)
        hold(server, CHAT, 4, chat([image(PICTURE)]))  # what is loaded at the first use
        yield server
    finally:
        process.kill()
        process.wait(20)


def is_ready(server: Server) -> bool:
    assert server.process.poll() is None
    try:
        return httpx.get(f"http://127.0.0.1:{server.port}/ready", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def send(server: Server, path: str, body: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    with suppress(BrokenPipeError, ConnectionResetError):  # it may be refused before it is whole
        connection.sendall(head.encode() + body)
    return connection


def answered(connections: list[socket.socket]) -> list[socket.socket]:
    return select.select(connections, [], [], 0)[0]


def hold(server: Server, path: str, count: int, body: bytes) -> tuple[int, int, int, list[bytes]]:
    """MiB that the server has grown by, at its peak and while it holds as many of these requests as it took, what its gauge says
    then, and the answers of those that it did not take."""
    wait_for(lambda: server.gauge("llava_body_bytes") == 0 and server.gauge("llava_requests_inside") == 0)
    server.forget_peak()
    before = server.status("VmRSS")
    connections: list[socket.socket] = []
    try:
        for _ in range(count):
            connections.append(send(server, path, body))
        wait_for(lambda: server.gauge("llava_requests_running") + len(answered(connections)) >= count, 120)
        held, peak = server.status("VmRSS") - before, server.status("VmHWM") - before
        gauge = server.gauge("llava_body_bytes") / MIB
        return peak, held, round(gauge), [connection.recv(1 << 16) for connection in answered(connections)]
    finally:
        for connection in connections:
            with closing(connection):
                pass


@pytest.mark.parametrize("kind", BODIES)
def test_memory_that_is_not_counted(silent: Server, kind: str) -> None:
    peak, held, gauge, answers = hold(silent, *BODIES[kind])
    assert all(re.match(rb"HTTP/1.1 4(00|13|29) ", answer) for answer in answers), answers
    assert held <= gauge + SLACK, f"{held} MiB are held, and {gauge} are counted"
    assert peak <= LIMIT + SLACK, f"{peak} MiB at the peak"
