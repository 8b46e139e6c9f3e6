"""The way of deltas from a replica to the gateways that asked: a connection for each gateway, and one write for all that a step of the
engine has brought it. (Ray's own streams take half a millisecond of CPU for each delta, at either end.)"""

import asyncio
import hmac
import pickle
import secrets
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from llava_gateway.chat import Delta, Usage
from llava_gateway.errors import GatewayError

HELLO_TIMEOUT = 5
TOKEN_BYTES = 16

Entry = tuple[int, Delta | None, tuple[int, int, int, int], GatewayError | bool]
"""Of the request with this number: its next delta, its usage so far, and whether or how it has ended."""


@dataclass(frozen=True)
class Address:
    host: str
    port: int
    token: str
    """Which a gateway has to know: of its hex digits and those of the gateway's name its first message consists."""


def address_of(metadata: Mapping[str, Any]) -> Address | None:
    """Of a replica, as it has told Ray Serve; None if it is of another version, and about to be replaced."""
    try:
        return Address(**metadata)
    except TypeError:
        return None


@dataclass
class _Gateway:
    writer: asyncio.StreamWriter
    waiting: list[Entry] = field(default_factory=list)


class Outbox:
    """Used from one event loop."""

    def __init__(self, on_gone: Callable[[str], None]) -> None:
        """`on_gone`: told the name of a gateway that reads no longer."""
        self._on_gone = on_gone
        self._token = secrets.token_hex(TOKEN_BYTES)
        self._gateways: dict[str, _Gateway] = {}
        self._arrival = asyncio.Condition()
        self._flushing = False

    async def start(self, host: str, context: ssl.SSLContext | None) -> Address:
        """Listen, on a port of the system's choice. `context`: encrypt with it."""
        self._server = await asyncio.start_server(self._serve, host, 0, ssl=context)
        return Address(host, self._server.sockets[0].getsockname()[1], self._token)

    def put(self, gateway: str, number: int, delta: Delta | None, usage: Usage, end: GatewayError | bool = False) -> None:
        """For this gateway, unless it has gone."""
        if reader := self._gateways.get(gateway):
            used = (usage.prompt_tokens, usage.image_tokens, usage.cached_tokens, usage.completion_tokens)
            reader.waiting.append((number, delta, used, end))
            if not self._flushing:
                self._flushing = True
                asyncio.get_running_loop().call_soon(self._flush)

    async def reach(self, gateway: str) -> bool:
        """Whether this gateway listens, by now or in a moment."""
        if gateway in self._gateways:
            return True
        try:
            async with asyncio.timeout(HELLO_TIMEOUT), self._arrival:
                return await self._arrival.wait_for(lambda: gateway in self._gateways)
        except TimeoutError:
            return False

    def _flush(self) -> None:
        self._flushing = False
        for reader in self._gateways.values():
            if reader.waiting:
                frame = pickle.dumps(reader.waiting, pickle.HIGHEST_PROTOCOL)
                reader.waiting.clear()
                reader.writer.write(len(frame).to_bytes(4) + frame)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        gateway = ""
        try:
            async with asyncio.timeout(HELLO_TIMEOUT):
                hello = (await reader.readexactly(4 * TOKEN_BYTES)).decode("latin-1")
            token, name = hello[: 2 * TOKEN_BYTES], hello[2 * TOKEN_BYTES :]
            if not hmac.compare_digest(token.encode(), self._token.encode()):
                return
            gateway = name
            self._gateways[gateway] = _Gateway(writer)
            async with self._arrival:
                self._arrival.notify_all()
            await reader.read()  # nothing more comes, but the end
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            if gateway and self._gateways[gateway].writer is writer:
                del self._gateways[gateway]
                self._on_gone(gateway)
