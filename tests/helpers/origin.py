"""A real local image server with good and bad responses."""

import gzip
import http.server
import time
import zlib
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from llava_gateway.demo.images import draw, encode

GRID = ("purple", "green", "white", "orange")
CODED: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "zlib": zlib.compress,
    "raw": lambda data: zlib.compress(data, wbits=-zlib.MAX_WBITS),
    "twice": lambda data: gzip.compress(gzip.compress(data)),
    "damaged": lambda data: gzip.compress(data)[:-20],
    "bomb": lambda data: gzip.compress(bytes(100 << 20)),
    "bomb-twice": lambda data: gzip.compress(gzip.compress(bytes(100 << 20))),
}
"""Bodies by the last part of their path, /coded/CONTENT-ENCODING/NAME."""


class Origin(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.files: dict[str, bytes] = {}
        """More files, by their paths."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore errors: clients of these tests disconnect early."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Origin

    def do_GET(self) -> None:
        self.server.requests.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
        image = encode(draw(GRID))
        if self.path.startswith("http://pictures.example/") or self.path == "/picture":  # a request to a proxy, or to an origin
            self._answer(200, image)
        elif self.path in self.server.files:
            self._answer(200, self.server.files[self.path], headers={"cache-control": "max-age=60"})
        elif self.path == "/redirect":
            self._redirect("/picture")
        elif self.path == "/loop":
            self._redirect("/loop")
        elif self.path == "/to-private":
            self._redirect("http://10.0.0.1/picture")
        elif self.path == "/to-file":
            self._redirect("file:///etc/passwd")
        elif self.path == "/to-nonsense":
            self._redirect("http://[")
        elif self.path == "/to-unicode":
            self._redirect("http://\xe4/")
        elif self.path == "/to-spaces":
            self._redirect("/a b/caf\xc3\xa9.png?\xe4=%20")  # UTF-8 and Latin-1
        elif self.path == "/a%20b/caf%C3%A9.png?%E4=%20":
            self._answer(200, image)
        elif self.path == "/to-host-with-a-space":
            self._redirect("http://127.0.0.1 .example.com/")
        elif self.path == "/to-unicode-and-private":
            self._redirect("http://10.0.0.1/caf\xc3\xa9 1.png")
        elif self.path == "/large":
            self._answer(200, bytes(2 << 20))
        elif self.path == "/silent":  # accepts the request and sends no response
            time.sleep(20)
        elif self.path.startswith("/cached"):
            self._answer(200, image, headers={"cache-control": "max-age=60"})
        elif self.path == "/private":
            self._answer(200, image, headers={"cache-control": "private, max-age=60"})
        elif self.path == "/tagged":
            if self.headers["if-none-match"] == '"1"':
                self.send_response(304)
                self.send_header("etag", '"1"')
                self.end_headers()
            else:
                self._answer(200, image, headers={"cache-control": "no-cache", "etag": '"1"'})
        elif self.path == "/odd-etag":
            self._answer(200, image, headers={"cache-control": "no-cache", "etag": '"\xfc"'})
        elif self.path == "/odd-date":
            self._answer(200, image, headers={"cache-control": "no-cache", "last-modified": "Samstag, 1. M\xe4rz"})
        elif self.path == "/to-cached":
            self._redirect("/cached")
        elif self.path == "/slow":
            time.sleep(0.3)
            self._answer(200, image)
        elif self.path == "/short":  # declares more bytes than it sends
            self._answer(200, image[:100], length=len(image))
        elif self.path == "/chunked":
            self._answer(200, b"", length=None)
            self.wfile.write(image)
        elif self.path == "/cookie":
            self._answer(200, image, headers={"set-cookie": "sid=alice"})
        elif self.path.startswith("/coded/"):
            coding, name = unquote(self.path).split("/")[2:]
            self._answer(200, CODED[name](image), headers={"content-encoding": coding})
        elif self.path == "/text":
            self._answer(200, b"<html>no image</html>")
        elif self.path == "/lies":  # declares a huge length
            self._answer(200, b"", length=10**12)
        elif self.path == "/endless":
            self._answer(200, b"", length=None)
            while True:
                self.wfile.write(b"\0" * 65536)
        elif self.path == "/drip":
            self._answer(200, b"", length=len(image))
            for byte in image:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                time.sleep(0.5)
        else:
            self._answer(404, b"")

    def _redirect(self, location: str) -> None:
        self.send_response(302)
        self.send_header("location", location)
        self.send_header("content-length", "0")
        self.end_headers()

    def _answer(self, status: int, body: bytes, length: int | None = -1, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("content-type", "image/png")
        if length is not None:
            self.send_header("content-length", str(len(body) if length == -1 else length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass
