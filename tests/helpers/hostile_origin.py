"""An image server whose small responses cost much work, and a measure of how long they block an event loop."""

import asyncio
import gc
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain, repeat

OK = b"HTTP/1.1 200 OK\r\ncontent-type: image/png\r\n"
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"
CONTENT = bytes(range(256)) * 256
TINY_CHUNKS = b"1\r\nx\r\n" * 10_000
HEADER_LINES = b"a:b\r\n" * 13_000
"""64 KB."""


def blocks(path: str) -> Iterator[bytes]:
    """Yield the blocks that the server sends for a path. Only the paths that begin with "good" have an end."""
    answers: dict[str, Iterator[bytes]] = {
        "good": iter([OK + b"content-length: %d\r\n\r\n" % len(CONTENT), CONTENT]),
        "good-lines": chain([CHUNKED], (b"%x\r\n%b\r\n" % (256, CONTENT[:256]) for _ in range(256)), [b"0\r\n\r\n"]),
        "good-line-feeds": iter([OK + b"content-length: 200000\r\n\r\n", b"\n" * 200_000]),
        "good-continue": iter([b"HTTP/1.1 100 Continue\r\n\r\n" * 3, OK + b"content-length: 1\r\n\r\nx"]),
        "good-trailer": iter([CHUNKED, b"1\r\nx\r\n0\r\netag: 1\r\n\r\n"]),
        "tiny-chunks": chain([CHUNKED], repeat(TINY_CHUNKS)),
        "tiny-chunks-later": chain([CHUNKED], repeat(b"8000\r\n" + bytes(32768) + b"\r\n", 20), repeat(TINY_CHUNKS)),
        "small-chunks": chain([CHUNKED], repeat(b"50\r\n" + bytes(80) + b"\r\n")),
        "chunk-extension": chain([CHUNKED + b"1;"], repeat(b"a\n" * 30_000)),
        "continues": repeat(b"HTTP/1.1 100 Continue\r\n\r\n" * 3000),
        "early-hints": repeat(b"HTTP/1.1 103 \n\n" * 5000),
        "header-lines": chain([OK, HEADER_LINES, b"content-length: 1\r\n\r\nx"], repeat(b"x" * 1000)),
        "endless-head": chain([OK], repeat(HEADER_LINES)),
        "endless-line": chain([OK + b"a: "], repeat(b"a" * 60_000)),
        "trailers": chain([CHUNKED, b"1\r\nx\r\n0\r\n"], repeat(HEADER_LINES)),
        "whole-trailers": iter([CHUNKED + b"1\r\nx\r\n0\r\n" + HEADER_LINES + b"\r\n"]),
        "tiny-segments": chain([OK + b"content-length: 1000000\r\n\r\n"], repeat(b"x")),
        "tiny-head-segments": chain([OK + b"a: "], repeat(b"x")),
        "redirects": iter([b"HTTP/1.1 302 Found\r\nlocation: /redirects\r\n" + HEADER_LINES[:30_000] + b"\r\n"]),
    }
    return answers[path]


HOSTILE = [
    "tiny-chunks", "tiny-chunks-later", "small-chunks", "chunk-extension", "continues", "early-hints", "header-lines", "endless-head",
    "endless-line", "trailers", "whole-trailers", "tiny-segments", "tiny-head-segments", "redirects",
]  # fmt: skip


@contextmanager
def hostile_origin(tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """Yield the URL of a server that runs in its own thread."""
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(_answer, "127.0.0.1", 0, ssl=tls))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(_end(server))
        loop.close()


async def _end(server: asyncio.Server) -> None:
    server.close()
    answers = asyncio.all_tasks() - {asyncio.current_task()}
    for task in answers:
        task.cancel()
    await asyncio.gather(*answers, return_exceptions=True)


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with suppress(OSError, asyncio.IncompleteReadError):
        head = await reader.readuntil(b"\r\n\r\n")
        for block in blocks(head.split(b" ")[1].decode().strip("/")):
            writer.write(block)
            await writer.drain()
            await asyncio.sleep(0)
    writer.close()


class Stalls:
    """The longest time for which the event loop was blocked, in seconds of this thread's CPU time."""

    def __init__(self) -> None:
        self.longest = 0.0

    async def __aenter__(self) -> "Stalls":
        gc.disable()
        self._ticker = asyncio.create_task(self._tick())
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *error: object) -> None:
        self._ticker.cancel()
        gc.enable()

    async def _tick(self) -> None:
        while True:
            before = time.thread_time()
            await asyncio.sleep(0.001)
            self.longest = max(self.longest, time.thread_time() - before)
