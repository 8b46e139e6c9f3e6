"""Attacks on a gateway, for `make soak`: one hostile client with its own address, while other clients send requests.

Each attack is bounded in time.
"""

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
"""The attackers' address. The polite clients use 127.0.0.1; the gateway shares its time fairly between addresses."""
PATIENCE = 8.0
"""The longest time that an attacker waits, in seconds."""
CONNECTIONS = ["leave", "upgrade", "websocket", "drip", "silent", "deaf"]
KINDS = [
    *("seeds", "long_seeds", "scans", "tiles", "chunks", "percent", "ignored", "emoji", "urls", "prompts", "schemas", "regexes"),
    *("logprobs", *CONNECTIONS),
]
UPGRADE = b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"


def _data_uri(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def _image_request(data: bytes) -> dict[str, Any]:
    return body(image_part(_data_uri(data)), "Hello", max_tokens=1)


class Attacks:
    """The attacks of one hostile client. Each is named in `KINDS`."""

    def __init__(self, url: str, origin_url: str) -> None:
        """`url`: the gateway's. `origin_url`: that of `hostile_origin.hostile_origin`."""
        self._address = ("127.0.0.1", int(url.rsplit(":", 1)[1]))
        self._http = httpx.Client(base_url=url, transport=httpx.HTTPTransport(local_address=ADDRESS), timeout=PATIENCE)
        schema: dict[str, Any] = {"allOf": [{"type": "object", "properties": {f"a{i}": {"type": "string"}}} for i in range(300)]}
        schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
        small = image(("red", "blue", "green", "white"))
        self._bodies: dict[str, list[Any]] = {
            "seeds": [body(small, "Hello", seed=7, temperature=1, max_tokens=4)],
            "long_seeds": [{"model": "llava-demo", "prompt": ["red " * 2300] * 2, "max_tokens": 2, "seed": 1}],
            "scans": [_image_request(hostile_files.sequential_scans(20_000)), _image_request(hostile_files.hidden_scans(20_000))],
            "tiles": [
                _image_request(hostile_files.large_tile()),
                _image_request(hostile_files.shared_pieces(63, 2048, tiled=True)),
                _image_request(hostile_files.shared_pieces(63, 2048, tiled=False)),
            ],
            "chunks": [
                _image_request(hostile_files.exif_flood()),
                _image_request(hostile_files.profile_flood()),
                _image_request(hostile_files.empty_idats(300_000)),
                _image_request(hostile_files.long_gif_comment(1_000_000)),
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
        """Run an attack and return the HTTP status of the response, or 0 if there was none."""
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
        """Disconnect while the gateway decodes an image."""
        content = rng.choice(self._contents["scans"] + self._contents["tiles"])
        with self._connect() as connection:
            connection.sendall(self._head(len(content)) + content)
            time.sleep(rng.random() / 2)
        return 0

    def _upgrade(self, rng: random.Random) -> int:
        """Ask for an upgrade with a body that never comes."""
        with self._connect() as connection:
            connection.sendall(b"GET /x HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\n" + UPGRADE + b"\r\n")
            return self._status(connection)

    def _websocket(self, rng: random.Random) -> int:
        """Send the first 4 MB of a WebSocket message of 8 MB."""
        with self._connect() as connection:
            connection.sendall(b"GET /api/v1/stream HTTP/1.1\r\nhost: localhost\r\n" + UPGRADE + b"\r\n")
            status = self._status(connection)
            frame = b"\x81\xff" + (8_000_000).to_bytes(8) + b"\0\0\0\0"
            connection.sendall(frame + bytes(4_000_000))
            connection.recv(1000)
            return status

    def _drip(self, rng: random.Random) -> int:
        """Send a body byte by byte."""
        with self._connect() as connection:
            connection.sendall(self._head(1000))
            deadline = time.monotonic() + PATIENCE / 2
            while time.monotonic() < deadline:
                connection.sendall(b" ")
                time.sleep(0.2)
        return 0

    def _silent(self, rng: random.Random) -> int:
        """Open thirty connections that send nothing, or only the start of a request."""
        connections = [self._connect() for _ in range(30)]
        for connection in connections[::2]:
            connection.sendall(b"POST / HTTP/1.1\r\nhost:")
        time.sleep(rng.random() * 4)
        for connection in connections:
            connection.close()
        return 0

    def _deaf(self, rng: random.Random) -> int:
        """Ask for a stream and never read it."""
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
