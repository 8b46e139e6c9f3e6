"""Requests to text-generation-webui's API, and checks of its responses."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from helpers.errors import LEAKS
from helpers.server import Server
from websockets.sync.client import ClientConnection, connect

from llava_gateway.demo.images import Grid, data_uri, draw, encode

API = "/api/v1"
GRID: Grid = ("red", "blue", "green", "orange")
OTHER: Grid = ("white", "yellow", "black", "purple")
GREEDY = {"do_sample": False, "repetition_penalty": 1.0}
HELLO = "USER: Hello ASSISTANT:"
ASK = "Describe this image."


def tag(grid: Grid) -> str:
    return f'<img src="{data_uri(encode(draw(grid)))}">'.replace("image/png", "image/jpeg")  # the dialect's label, which lies


def asking(*pictures: str, text: str = ASK) -> str:
    return f"USER: {''.join(picture + chr(10) for picture in pictures)}{text} ASSISTANT:"


def generate(plain_http: httpx.Client, prompt: str, **fields: Any) -> str:
    answer = plain_http.post(f"{API}/generate", json={"prompt": prompt} | GREEDY | fields)
    assert answer.status_code == 200, answer.text
    ((result,),) = answer.json().values()
    assert set(result) == {"text"}
    return str(result["text"])


def chat(plain_http: httpx.Client, said: str = "", *turns: list[str], **fields: Any) -> list[list[str]]:
    """All turns after this one."""
    asked = {"user_input": said, "history": {"internal": list(turns), "visible": list(turns)}} | GREEDY | fields
    answer = plain_http.post(f"{API}/chat", json=asked)
    assert answer.status_code == 200, answer.text
    ((result,),) = answer.json().values()
    history = result["history"]
    assert set(history) == {"internal", "visible"}
    assert history["visible"] == history["internal"]
    return list(history["internal"])


@contextmanager
def opened(server: Server, path: str, **options: Any) -> Iterator[ClientConnection]:
    with connect(f"ws{server.url.removeprefix('http')}{API}/{path}", max_size=None, **options) as socket:
        yield socket


def events(socket: ClientConnection, asked: Any) -> list[dict[str, Any]]:
    """Those that answer one message; the last is the stream's end."""
    socket.send(json.dumps(asked))
    return [*rest(socket)]


def rest(socket: ClientConnection) -> Iterator[dict[str, Any]]:
    while True:
        event = json.loads(socket.recv(timeout=60))
        yield event
        if event["event"] == "stream_end":
            return


def refused(answer: httpx.Response, status: int, param: str | None, code: str | None = None) -> str:
    assert answer.status_code == status, answer.text
    return is_error(answer.json(), param, code)


def is_error(answer: dict[str, Any], param: str | None, code: str | None = None) -> str:
    error = answer["error"]
    assert not LEAKS.search(str(error))
    assert set(error) == {"message", "param", "code"}
    assert error["param"] == param, error
    assert code is None or error["code"] == code
    return str(error["message"])


FIRST = ("red", "blue", "green", "white")
