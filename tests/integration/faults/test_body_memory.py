"""The memory that request bodies take is counted, and stays below the limit: checked against the memory that Linux reports."""

import os
import re
import select
import socket
import subprocess
import sys
import time
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
"""The limit for all bodies together, in MiB."""
SLACK = 96
"""An allowance for memory that is not a body, in MiB: heap fragments of a parsed body, threads, tokenizers and images in decoding."""
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
"""Variables that make glibc return each freed large block to the system at once.

glibc otherwise raises its threshold to 32 MiB when such blocks are freed, and then keeps freed blocks in the heaps of the threads that
used them. The number of such heaps depends on the threads' order, and their memory is not held by any body.
"""
CHAT, COMPLETION, GENERATE = "/v1/chat/completions", "/v1/completions", "/api/v1/generate"
IMAGE = data_uri(encode(draw(("red", "blue", "green", "orange"))))
PROMPT = b'{"model":"llava-demo","messages":[{"role":"user","content":"Hi"}],'


def chat(content: object, **fields: object) -> bytes:
    return orjson.dumps({"model": "llava-demo", "messages": [{"role": "user", "content": content}], "max_tokens": 4} | fields)


def image(url: str) -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": url}}


def objects(count: int) -> bytes:
    return b"[" + b",".join([b"{}"] * count) + b"]"


def escaped(count: int) -> bytes:
    """Return a chat whose image consists of unnecessary percent escapes."""
    return chat([image("data:image/png;base64," + "%41" * count)])


def padded() -> str:
    """Return a valid image of 5 MB: decoders ignore the bytes after the end of a PNG."""
    return "data:image/png;base64," + pybase64.b64encode(encode(draw(("red",) * 4)) + b"\0" * 3_700_000).decode()


BODIES: dict[str, tuple[str, int, bytes]] = {
    "percent-encoded image": (CHAT, 1, escaped(9_600_000)),
    "two percent-encoded images": (CHAT, 1, chat([image("data:image/png;base64," + "%41" * 9_600_000)] * 2)),
    "images with white space": (CHAT, 4, chat([image("data:image/png;base64," + "QUFB\\r\\n" * 2_000_000)])),
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
    "many small images": (CHAT, 16, chat([image(IMAGE)] * 1000)),
    "large images": (CHAT, 16, chat([image(padded())])),
    "duplicate keys": (CHAT, 12, PROMPT + b",".join([b'"user":"' + b"a" * 3_000_000 + b'"'] * 15) + b"}"),
    "token ids": (COMPLETION, 8, orjson.dumps({"model": "llava-demo", "prompt": [[5] * 4000] * 128, "max_tokens": 4})),
    "an emoji beside an image": (GENERATE, 8, orjson.dumps({"prompt": f'😀<img src="{padded()}">'})),
    "one emoji in 54 MB of another API": (GENERATE, 4, orjson.dumps({"prompt": "😀" + "a" * 54_000_000})),
    "deep nesting": (CHAT, 8, PROMPT + b'"metadata":' + b"[" * 140_000 + b"]" * 140_000 + b"}"),
}


@dataclass(frozen=True)
class SilentServer:
    """A running `helpers/silent_engine.py`."""

    process: subprocess.Popen[bytes]
    port: int

    def status(self, name: str) -> int:
        """Return a memory figure of the process from /proc, in MiB."""
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
def silent_server() -> Iterator[SilentServer]:
    port = free_port()
    environment = os.environ | ALLOCATOR | {"LLAVA_MAX_BODIES_MB": str(LIMIT), "LLAVA_MAX_RUNNING": "200", "LLAVA_BODY_TIMEOUT": "100"}
    process = subprocess.Popen([sys.executable, Path(__file__).parents[2] / "helpers" / "silent_engine.py", str(port)], env=environment)
    server = SilentServer(process, port)
    try:
        wait_for(lambda: is_ready(server), 120)
        hold(server, CHAT, 4, chat([image(IMAGE)]))  # loads the modules that the first request needs
        yield server
    finally:
        process.kill()
        process.wait(20)


def is_ready(server: SilentServer) -> bool:
    assert server.process.poll() is None
    try:
        return httpx.get(f"http://127.0.0.1:{server.port}/ready", timeout=60).status_code == 200
    except httpx.TransportError:
        return False


def send(server: SilentServer, path: str, body: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=120)
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    with suppress(BrokenPipeError, ConnectionResetError):  # the server may refuse the request before its end
        connection.sendall(head.encode() + body)
    return connection


def answered(connections: list[socket.socket]) -> list[socket.socket]:
    return select.select(connections, [], [], 0)[0]


def hold(server: SilentServer, path: str, count: int, body: bytes) -> tuple[int, int, int, list[bytes]]:
    """Send requests until the server has accepted or refused all of them, and return memory figures in MiB and the refusals.

    The figures: the growth of the process at its peak, its growth while it holds the accepted requests, and the gauge of all bodies.
    A refused request may release its memory after its response, so the growth is measured until it fits the gauge, for 60 s at most.
    """
    wait_for(lambda: server.gauge("llava_body_bytes") == 0 and server.gauge("llava_requests_inside") == 0, 120)
    server.forget_peak()
    before = server.status("VmRSS")
    connections: list[socket.socket] = []
    try:
        for _ in range(count):
            connections.append(send(server, path, body))
        wait_for(lambda: server.gauge("llava_requests_running") + len(answered(connections)) >= count, 120)
        deadline = time.monotonic() + 60
        while True:
            gauge = round(server.gauge("llava_body_bytes") / MIB)
            held, peak = server.status("VmRSS") - before, server.status("VmHWM") - before
            if held <= gauge + SLACK or time.monotonic() > deadline:
                return peak, held, gauge, [connection.recv(1 << 16) for connection in answered(connections)]
            time.sleep(0.05)
    finally:
        for connection in connections:
            with closing(connection):
                pass


@pytest.mark.parametrize("kind", BODIES)
def test_memory_of_bodies_is_counted_and_limited(silent_server: SilentServer, kind: str) -> None:
    peak, held, gauge, answers = hold(silent_server, *BODIES[kind])
    assert all(re.match(rb"HTTP/1.1 4(00|13|29) ", answer) for answer in answers), answers
    assert held <= gauge + SLACK, f"{held} MiB are held, but only {gauge} are counted"
    assert peak <= LIMIT + SLACK, f"{peak} MiB at the peak"
