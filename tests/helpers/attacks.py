"""Attacks on a gateway, each bounded in time, for `make soak`: what one hostile client does from an address of its own while others ask."""

import base64
import contextlib
import json
import random
import socket
import time
from collections.abc import Callable
from typing import Any

import httpx
from helpers import hostile_files
from helpers.hostile_origin import HOSTILE
from helpers.requests import body, image, image_part

CHAT = "/v1/chat/completions"
ADDRESS = "127.0.0.2"
"""Attackers come from here, polite clients from 127.0.0.1: the gateway is fair among addresses."""
PATIENCE = 8.0
"""Seconds for which an attacker waits at most."""
CONNECTIONS = ["leave", "upgrade", "websocket", "drip", "silent", "deaf"]
KINDS = [
    *("seeds", "long_seeds", "scans", "tiles", "chunks", "percent", "ignored", "emoji", "urls", "prompts", "schemas", "regexes"),
    *("logprobs", *CONNECTIONS),
]
UPGRADE = b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"


def _data_uri(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def _picture(data: bytes) -> dict[str, Any]:
    return body(image_part(_data_uri(data)), "Hello", max_tokens=1)


class Attacks:
    def __init__(self, url: str, origin_url: str) -> None:
        """`url`: of the gateway. `origin_url`: of `hostile.hostile_origin`."""
        self._address = ("127.0.0.1", int(url.rsplit(":", 1)[1]))
        self._http = httpx.Client(base_url=url, transport=httpx.HTTPTransport(local_address=ADDRESS), timeout=PATIENCE)
        schema: dict[str, Any] = {"allOf": [{"type": "object", "properties": {f"a{i}": {"type": "string"}}} for i in range(300)]}
        schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
        small = image(("red", "blue", "green", "white"))
        self._bodies: dict[str, list[Any]] = {
            "seeds": [body(small, "Hello", seed=7, temperature=1, max_tokens=4)],
            "long_seeds": [{"model": "llava-demo", "prompt": ["red " * 2300] * 2, "max_tokens": 2, "seed": 1}],
            "scans": [_picture(hostile_files.sequential_scans(20_000)), _picture(hostile_files.hidden_scans(20_000))],
            "tiles": [
                _picture(hostile_files.large_tile()),
                _picture(hostile_files.shared_pieces(63, 2048, tiled=True)),
                _picture(hostile_files.shared_pieces(63, 2048, tiled=False)),
            ],
            "chunks": [
                _picture(hostile_files.exif_flood()),
                _picture(hostile_files.profile_flood()),
                _picture(hostile_files.empty_idats(300_000)),
                _picture(hostile_files.long_gif_comment(1_000_000)),
            ],
            "percent": [body(image_part("data:image/png;base64," + "%41" * 2_000_000), "Hello")],
            "ignored": [body("Hello", metadata=[{}] * 400_000, max_tokens=1), body("Hello", nonsense=[[[]] * 400_000], max_tokens=1)],
            "emoji": [body("\N{LLAMA}" + "a" * 8_000_000)],
            "urls": [body(image_part(f"{origin_url}/{path}"), "Hello") for path in HOSTILE],
            "prompts": [{"model": "llava-demo", "prompt": ["red blue " * 500] * 64, "max_tokens": 1}],
            "schemas": [body("Hello", response_format=schema, max_tokens=1)],
            "regexes": [body("Hello", structured_outputs={"regex": "(" + "\N{LLAMA}" * 60_000 + str(i)}) for i in range(50)],
            "logprobs": [body("Hello", n=4, temperature=1, logprobs=True, top_logprobs=20, max_tokens=50, ignore_eos=True)],
        }
        self._contents = {name: [json.dumps(each).encode() for each in bodies] for name, bodies in self._bodies.items()}
        assert [*self._contents, *CONNECTIONS] == KINDS

    def run(self, kind: str, rng: random.Random) -> int:
        """The status that answered it; 0 if none did."""
        with contextlib.suppress(OSError, httpx.TransportError):
            if kind in self._contents:
                return self._post(kind, rng)
            attack: Callable[[random.Random], int] = getattr(self, f"_{kind}")
            return attack(rng)
        return 0

    def _post(self, kind: str, rng: random.Random) -> int:
        path = "/v1/completions" if "prompt" in self._bodies[kind][0] else CHAT
        content = rng.choice(self._contents[kind])
        return self._http.post(path, content=content, headers={"content-type": "application/json"}).status_code

    def _connect(self) -> socket.socket:
        return socket.create_connection(self._address, PATIENCE, (ADDRESS, 0))

    def _leave(self, rng: random.Random) -> int:
        """With a picture half decoded."""
        content = rng.choice(self._contents["scans"] + self._contents["tiles"])
        with self._connect() as connection:
            connection.sendall(self._head(len(content)) + content)
            time.sleep(rng.random() / 2)
        return 0

    def _upgrade(self, rng: random.Random) -> int:
        """With a body, for which nobody waits in time."""
        with self._connect() as connection:
            connection.sendall(b"GET /x HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\n" + UPGRADE + b"\r\n")
            return self._status(connection)

    def _websocket(self, rng: random.Random) -> int:
        """A message of 4 MB that never ends."""
        with self._connect() as connection:
            connection.sendall(b"GET /api/v1/stream HTTP/1.1\r\nhost: localhost\r\n" + UPGRADE + b"\r\n")
            status = self._status(connection)
            frame = b"\x81\xff" + (8_000_000).to_bytes(8) + b"\0\0\0\0"
            connection.sendall(frame + bytes(4_000_000))
            connection.recv(1000)
            return status

    def _drip(self, rng: random.Random) -> int:
        """A body byte by byte."""
        with self._connect() as connection:
            connection.sendall(self._head(1000))
            deadline = time.monotonic() + PATIENCE / 2
            while time.monotonic() < deadline:
                connection.sendall(b" ")
                time.sleep(0.2)
        return 0

    def _silent(self, rng: random.Random) -> int:
        """Thirty connections that say nothing, or little."""
        connections = [self._connect() for _ in range(30)]
        for connection in connections[::2]:
            connection.sendall(b"POST / HTTP/1.1\r\nhost:")
        time.sleep(rng.random() * 4)
        for connection in connections:
            connection.close()
        return 0

    def _deaf(self, rng: random.Random) -> int:
        """A stream that nobody reads."""
        content = json.dumps(body("Hello", stream=True, max_tokens=100, ignore_eos=True)).encode()
        with self._connect() as connection:
            connection.sendall(self._head(len(content)) + content)
            time.sleep(rng.random() * 2)
        return 0

    @staticmethod
    def _head(length: int) -> bytes:
        return f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n".encode()

    @staticmethod
    def _status(connection: socket.socket) -> int:
        words = connection.recv(1000).split(b" ", 2)
        return int(words[1]) if len(words) > 1 else 0
