"""What an image costs: time to the first token, and the front end's CPU, for new and for known pictures."""

import base64
import http.client
import io
import json
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from peers import Peer
from PIL import Image

from llava_gateway.demo import MODEL_NAME

Row = dict[str, float]
SIZES = {"12 MP": (4000, 3000), "2 MP": (1600, 1200), "0.1 MP": (384, 288)}
TURNS = 4
"""Pictures of the chat whose second turn is measured."""


class Pictures:
    """Photographs, each another one: detail at every scale, so that decoding them costs what a camera's cost."""

    def __init__(self, size: tuple[int, int], seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        width, height = size
        small = Image.fromarray(self._rng.integers(0, 256, (24, 32, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
        noise = self._rng.integers(-12, 12, (height, width, 1), np.int16)
        self._base = (np.asarray(small, np.int16) + noise).clip(0, 255).astype(np.uint8)

    def __iter__(self) -> Iterator[str]:
        while True:
            top, left = self._rng.integers(0, min(self._base.shape[:2]) - 64, 2)
            self._base[top : top + 64, left : left + 64] = self._rng.integers(0, 256, (64, 64, 3))
            buffer = io.BytesIO()
            Image.fromarray(self._base).save(buffer, "JPEG", quality=88)
            yield "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def request(*urls: str, answers: int = 0) -> bytes:
    """Of one user message, and as many more turns as there are answers."""
    content = [{"type": "image_url", "image_url": {"url": url}} for url in urls] + [{"type": "text", "text": "Describe this image."}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    for _ in range(answers):
        messages += [{"role": "assistant", "content": "The top left is red."}, {"role": "user", "content": "And the top right?"}]
    fields = {"model": MODEL_NAME, "messages": messages, "temperature": 0, "max_tokens": 8, "stream": True}
    return json.dumps(fields).encode()


class Host(ThreadingHTTPServer):
    """Serves each picture at a URL of its own."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Pictures)
        self.pictures: dict[str, bytes] = {}

    def url(self, uri: str) -> str:
        path = f"/{len(self.pictures)}.jpg"
        self.pictures[path] = base64.b64decode(uri.partition(",")[2])
        return f"http://127.0.0.1:{self.server_address[1]}{path}"


class _Pictures(BaseHTTPRequestHandler):
    server: Host

    def do_GET(self) -> None:
        content = self.server.pictures[self.path]
        self.send_response(200)
        self.send_header("content-type", "image/jpeg")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def first_token(peer: Peer, body: bytes) -> float:
    """Milliseconds from sending to the first delta with text; reads on to the end."""
    connection = http.client.HTTPConnection(peer.url.removeprefix("http://"), timeout=120)  # light: it must not be what is measured
    start = time.perf_counter()
    connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    found, seen = 0.0, b""
    while piece := answer.read1(65536):
        seen += piece
        if not found and seen.count(b'"content":"') > seen.count(b'"content":""'):
            found = (time.perf_counter() - start) * 1000
    connection.close()
    assert found, seen
    return found


def measured(peer: Peer, work: Callable[..., float], *arguments: Any) -> tuple[float, float]:
    """What the work says it took, and the front end's CPU for it; both in milliseconds."""
    before = peer.cpu()
    took = work(peer, *arguments)
    return took, (peer.cpu() - before) * 1000


def rows(peer: Peer, samples: int) -> Iterator[tuple[str, Row]]:
    """Medians by name of the row."""
    for name, size in SIZES.items():
        pictures = iter(Pictures(size, seed=len(peer.name)))
        first_token(peer, request(next(pictures)))
        bodies = [request(next(pictures)) for _ in range(samples)]
        yield f"new {name} JPEG", _medians([measured(peer, first_token, body) for body in bodies])
        yield f"known {name} JPEG", _medians([measured(peer, first_token, bodies[0]) for _ in range(samples)])
        eights = [[request(next(pictures)) for _ in range(8)] for _ in range(max(samples // 2, 1))]
        yield f"eight new {name} JPEGs at once", _medians([measured(peer, _at_once, eight) for eight in eights])
        with Host() as host:
            threading.Thread(target=host.serve_forever, daemon=True).start()
            by_url = [request(host.url(next(pictures))) for _ in range(samples)]
            yield f"new {name} JPEG by URL", _medians([measured(peer, first_token, body) for body in by_url])
            host.shutdown()
    yield f"second turn of a chat with {TURNS} images of 2 MP", _medians(list(_second_turns(peer, samples)))


def _second_turns(peer: Peer, samples: int) -> Iterator[tuple[float, float]]:
    pictures = iter(Pictures(SIZES["2 MP"], seed=len(peer.name) + 1))
    for _ in range(samples):
        chat = [next(pictures) for _ in range(TURNS)]
        first_token(peer, request(*chat))
        yield measured(peer, first_token, request(*chat, answers=1))


def _at_once(peer: Peer, bodies: list[bytes]) -> float:
    start = time.perf_counter()
    with ThreadPoolExecutor(len(bodies)) as pool:
        list(pool.map(lambda body: first_token(peer, body), bodies))
    return (time.perf_counter() - start) * 1000


def _medians(pairs: list[tuple[float, float]]) -> Row:
    return {"ms": statistics.median(pair[0] for pair in pairs), "front end CPU ms": statistics.median(pair[1] for pair in pairs)}


def memory_after_distinct_images(peer: Peer, count: int) -> tuple[int, int]:
    """The front end's RSS in bytes before and after `count` pictures, each another one."""
    rng = np.random.default_rng(5)
    before = 0
    for number in range(count):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).resize((512, 512)).save(buffer, "JPEG")
        first_token(peer, request("data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()))
        if number == 20:
            before = peer.rss()
    return before, peer.rss()
