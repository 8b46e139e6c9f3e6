"""A client for load tests. It uses little CPU beside the server: one kept-alive connection, and answers that are searched, not parsed."""

import asyncio
import ssl
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httptools
import orjson


@dataclass(slots=True)
class Outcome:
    """The result of one request. Times are in seconds since the request was sent."""

    status: int = 0
    """The HTTP status; 0 if there was no answer."""
    first: float | None = None
    """The time of the first piece of text."""
    last: float = 0.0
    """The time of the complete answer."""
    pieces: int = 0
    """Events with text, or 1 for an answer that did not stream."""
    completion_tokens: int = 0
    """The server's count. If the server reports none, the number of pieces."""
    prompt_tokens: int | None = None
    """The server's count. None: the server reports none."""
    error: str = ""
    """Empty if the request succeeded."""


@dataclass(frozen=True)
class LoadTarget:
    """The server under test."""

    url: str
    """The URL of the API, like an SDK's base_url: http://127.0.0.1:8000/v1."""
    key: str = ""
    """The API key; empty: none."""

    def head(self, path: str, length: int) -> bytes:
        """Return the head of a POST request whose body has `length` bytes."""
        parts = urlsplit(self.url)
        authorization = f"authorization: Bearer {self.key}\r\n" if self.key else ""
        return (
            f"POST {parts.path.rstrip('/')}{path} HTTP/1.1\r\nhost: {parts.netloc}\r\ncontent-type: application/json\r\n"
            f"content-length: {length}\r\n{authorization}\r\n"
        ).encode()

    async def connect(self) -> "Connection":
        """Open a connection. Raises OSError."""
        parts = urlsplit(self.url)
        tls = ssl.create_default_context() if parts.scheme == "https" else None
        port = parts.port or (443 if tls else 80)
        _, connection = await asyncio.get_running_loop().create_connection(Connection, parts.hostname or "", port, ssl=tls)
        return connection


@dataclass
class Connection(asyncio.Protocol):
    """An HTTP/1.1 connection that carries one request at a time."""

    is_open: bool = True
    _outcome: Outcome = field(default_factory=Outcome)
    _body: bytearray = field(default_factory=bytearray)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._done: asyncio.Future[None] | None = None

    async def ask(self, request: bytes) -> Outcome:
        """Send a request, head and body. Return when the answer is complete or the connection is closed. Raises nothing."""
        self._outcome, self._body = Outcome(), bytearray()
        self._parser = httptools.HttpResponseParser(self)
        self._done = asyncio.get_running_loop().create_future()
        self._start = time.perf_counter()
        self._transport.write(request)
        try:
            await self._done
        finally:
            self._done = None
        return self._outcome

    def close(self) -> None:
        """Close the connection at once."""
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end(f"not HTTP: {error}")
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        self._end("the connection was closed")

    def on_headers_complete(self) -> None:
        self._outcome.status = self._parser.get_status_code()
        self.is_open = self._parser.should_keep_alive()

    def on_body(self, body: bytes) -> None:
        if b'"content":"' in body or b'"text":"' in body:
            texts = body.count(b'"content":"') + body.count(b'"text":"') - body.count(b'"content":""') - body.count(b'"text":""')
            if texts > 0:
                self._outcome.pieces += texts
                if self._outcome.first is None:
                    self._outcome.first = time.perf_counter() - self._start
        # Usage and errors are at the end of an answer, so only the end of a long answer is kept.
        self._body += body
        if len(self._body) > 1 << 17:
            del self._body[: -(1 << 16)]

    def on_message_complete(self) -> None:
        if self._outcome.status == 200:
            body = bytes(self._body)
            counted = _last_number(body, b'"completion_tokens":')
            self._outcome.completion_tokens = counted if counted is not None else self._outcome.pieces
            self._outcome.prompt_tokens = _last_number(body, b'"prompt_tokens":')
            self._end("" if b'"error":' not in body or b'"choices":' in body[-4096:] else _error_message(body))
        else:
            self._end(_error_message(bytes(self._body)) or f"status {self._outcome.status}")

    def _end(self, error: str) -> None:
        if self._done and not self._done.done():
            self._outcome.last = time.perf_counter() - self._start
            self._outcome.error = error
            self._done.set_result(None)


def _last_number(body: bytes, key: bytes) -> int | None:
    """Return the number after the last `key` of a JSON answer or of its last chunk with usage. None: there is no such number."""
    position = body.rfind(key)
    digits = body[position + len(key) : position + len(key) + 12].strip().split(b",")[0].split(b"}")[0].strip()
    return int(digits) if position >= 0 and digits.isdigit() else None


def _error_message(body: bytes) -> str:
    """Return the server's error message, up to 200 characters. Empty: the body has none."""
    for line in reversed(body.replace(b"data: ", b"").splitlines()):
        try:
            error = orjson.loads(line)["error"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            continue
        return str(error.get("message", error) if isinstance(error, dict) else error)[:200]
    return ""
