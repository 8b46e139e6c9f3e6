"""What an image costs: time to the first token, and the front end's CPU, for new and for known images."""

import asyncio
import base64
import itertools
import json
import secrets
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from bench.peers import Peer

from llava_gateway.demo import MODEL_NAME
from llava_gateway.loadtest.bodies import photograph, with_new_pixels
from llava_gateway.loadtest.client import LoadTarget, Outcome

Row = dict[str, float]
SIZES = {"12 MP": (4000, 3000), "2 MP": (1600, 1200), "0.1 MP": (384, 288)}
TURNS = 4
"""Images of the chat whose second turn is measured."""


def images(size: tuple[int, int]) -> Iterator[str]:
    """Photographs without end, each another one, as data URIs."""
    photo = photograph(*size)
    for number in itertools.count(secrets.randbits(40)):
        yield "data:image/jpeg;base64," + base64.b64encode(with_new_pixels(photo, number)).decode()


def request(*urls: str, answers: int = 0) -> bytes:
    """Of one user message, and as many more turns as there are answers."""
    content = [{"type": "image_url", "image_url": {"url": url}} for url in urls] + [{"type": "text", "text": "Describe this image."}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    for _ in range(answers):
        messages += [{"role": "assistant", "content": "The top left is red."}, {"role": "user", "content": "And the top right?"}]
    fields = {"model": MODEL_NAME, "messages": messages, "temperature": 0, "max_tokens": 8, "stream": True}
    return json.dumps(fields).encode()


class Host(ThreadingHTTPServer):
    """Serves each image at a URL of its own."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Pictures)
        self.images: dict[str, bytes] = {}

    def url(self, uri: str) -> str:
        path = f"/{len(self.images)}.jpg"
        self.images[path] = base64.b64decode(uri.partition(",")[2])
        return f"http://127.0.0.1:{self.server_address[1]}{path}"


class _Pictures(BaseHTTPRequestHandler):
    server: Host

    def do_GET(self) -> None:
        content = self.server.images[self.path]
        self.send_response(200)
        self.send_header("content-type", "image/jpeg")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def first_token(peer: Peer, body: bytes) -> float:
    """Milliseconds from sending to the first delta with text; reads on to the end."""
    (outcome,), _ = asyncio.run(answer_all(peer, [body]))
    assert outcome.first is not None
    return outcome.first * 1000


def at_once(peer: Peer, bodies: list[bytes]) -> float:
    """Milliseconds until all are answered."""
    _, seconds = asyncio.run(answer_all(peer, bodies))
    return seconds * 1000


async def answer_all(peer: Peer, bodies: list[bytes], path: str = "/chat/completions") -> tuple[list[Outcome], float]:
    """To each, asked over a connection of its own; and the seconds that all took together."""
    target = LoadTarget(f"{peer.url}/v1")
    connections = [await target.connect() for _ in bodies]
    requests = [target.head(path, len(body)) + body for body in bodies]
    start = time.perf_counter()
    outcomes = await asyncio.gather(*(connection.ask(each) for connection, each in zip(connections, requests, strict=True)))
    seconds = time.perf_counter() - start
    for connection, outcome in zip(connections, outcomes, strict=True):
        connection.close()
        assert not outcome.error, outcome.error
    return outcomes, seconds


def measured(peer: Peer, work: Callable[..., float], *arguments: Any) -> tuple[float, float]:
    """What the work says it took, and the front end's CPU for it; both in milliseconds."""
    before = peer.cpu()
    took = work(peer, *arguments)
    return took, (peer.cpu() - before) * 1000


def rows(peer: Peer, samples: int) -> Iterator[tuple[str, Row]]:
    """By name of the row."""
    for name, size in SIZES.items():
        photos = images(size)
        first_token(peer, request(next(photos)))
        bodies = [request(next(photos)) for _ in range(samples)]
        yield f"new {name} JPEG", _row([measured(peer, first_token, body) for body in bodies])
        yield f"known {name} JPEG", _row([measured(peer, first_token, bodies[0]) for _ in range(samples)])
        eights = [[request(next(photos)) for _ in range(8)] for _ in range(max(samples // 2, 1))]
        yield f"eight new {name} JPEGs at once", _row([measured(peer, at_once, eight) for eight in eights])
        with Host() as host:
            threading.Thread(target=host.serve_forever, daemon=True).start()
            by_url = [request(host.url(next(photos))) for _ in range(samples)]
            yield f"new {name} JPEG by URL", _row([measured(peer, first_token, body) for body in by_url])
            host.shutdown()
    yield f"second turn of a chat with {TURNS} images of 2 MP", _row(list(_second_turns(peer, samples)))


def _second_turns(peer: Peer, samples: int) -> Iterator[tuple[float, float]]:
    photos = images(SIZES["2 MP"])
    for _ in range(samples):
        chat = [next(photos) for _ in range(TURNS)]
        first_token(peer, request(*chat))
        yield measured(peer, first_token, request(*chat, answers=1))


def _row(pairs: list[tuple[float, float]]) -> Row:
    """CPU is a mean: the kernel tells it in steps of 10 ms, more than some samples take."""
    return {"ms": statistics.median(pair[0] for pair in pairs), "front end CPU ms": statistics.mean(pair[1] for pair in pairs)}


def memory_after_distinct_images(peer: Peer, count: int) -> tuple[int, int]:
    """The front end's RSS in bytes before and after `count` images, each another one."""
    photos = images((512, 512))
    before = 0
    for number in range(count):
        first_token(peer, request(next(photos)))
        if number == 20:
            before = peer.rss()
    return before, peer.rss()
