"""A real local name server, over UDP, that answers at once, late, or not at all."""

import socketserver
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address

A, AAAA = 1, 28
NXDOMAIN = 3


@dataclass(frozen=True)
class Name:
    answers: tuple[list[str], ...]
    """A list of addresses for each query in turn. The last list is repeated."""
    ttl: int
    delay: float


class NameServer(socketserver.ThreadingUDPServer):
    """A name server that knows the names given to `define`. It never answers a query for a name without answers."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.names: dict[str, Name] = {}
        self.asked: Counter[tuple[str, int]] = Counter()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    def define(self, name: str, *answers: list[str], ttl: int = 0, delay: float = 0) -> None:
        self.names[name] = Name(answers, ttl, delay)

    def lookups(self, name: str) -> int:
        return self.asked[name, A]


@contextmanager
def running() -> Iterator[NameServer]:
    with NameServer() as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()


class _Handler(socketserver.BaseRequestHandler):
    server: NameServer

    def handle(self) -> None:
        query, sock = self.request
        name, question = _question(query)
        kind = struct.unpack_from("!H", question, len(question) - 4)[0]
        before = self.server.asked[name, kind]
        self.server.asked[name, kind] += 1
        known = self.server.names.get(name)
        if known is None:
            sock.sendto(_response(query, question, [], 0, NXDOMAIN), self.client_address)
        elif known.answers:
            time.sleep(known.delay)
            addresses = known.answers[min(before, len(known.answers) - 1)]
            packed = [ip_address(address).packed for address in addresses if isinstance(ip_address(address), IPv4Address) == (kind == A)]
            sock.sendto(_response(query, question, packed, known.ttl, 0), self.client_address)


def _question(query: bytes) -> tuple[str, bytes]:
    labels, at = [], 12
    while length := query[at]:
        labels.append(query[at + 1 : at + 1 + length].decode().lower())
        at += 1 + length
    return ".".join(labels), query[12 : at + 5]


def _response(query: bytes, question: bytes, addresses: list[bytes], ttl: int, code: int) -> bytes:
    header = struct.pack("!2sHHHHH", query[:2], 0x8180 | code, 1, len(addresses), 0, 0)
    records = [struct.pack("!HHHIH", 0xC00C, A if len(address) == 4 else AAAA, 1, ttl, len(address)) + address for address in addresses]
    return header + question + b"".join(records)
