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
    """Return an image element that shows a grid."""
    return f'<img src="{data_uri(encode(draw(grid)))}">'.replace("image/png", "image/jpeg")  # web UIs label every image as JPEG


def prompt_about(*images: str, text: str = ASK) -> str:
    """Return a prompt with image elements and a question."""
    return f"USER: {''.join(image + chr(10) for image in images)}{text} ASSISTANT:"


def generate(plain_http: httpx.Client, prompt: str, **fields: Any) -> str:
    """Return the text that the API generates for a prompt."""
    answer = plain_http.post(f"{API}/generate", json={"prompt": prompt} | GREEDY | fields)
    assert answer.status_code == 200, answer.text
    ((result,),) = answer.json().values()
    assert set(result) == {"text"}
    return str(result["text"])


def chat(plain_http: httpx.Client, said: str = "", *turns: list[str], **fields: Any) -> list[list[str]]:
    """Return all turns of a chat after its answer to a message."""
    asked = {"user_input": said, "history": {"internal": list(turns), "visible": list(turns)}} | GREEDY | fields
    answer = plain_http.post(f"{API}/chat", json=asked)
    assert answer.status_code == 200, answer.text
    ((result,),) = answer.json().values()
    history = result["history"]
    assert set(history) == {"internal", "visible"}
    assert history["visible"] == history["internal"]
    return list(history["internal"])


@contextmanager
def open_stream(server: Server, path: str, **options: Any) -> Iterator[ClientConnection]:
    """Open a WebSocket to a path of the API."""
    with connect(f"ws{server.url.removeprefix('http')}{API}/{path}", max_size=None, **options) as socket:
        yield socket


def events(socket: ClientConnection, asked: Any) -> list[dict[str, Any]]:
    """Send a message, and return its events up to the end of the stream."""
    socket.send(json.dumps(asked))
    return [*remaining_events(socket)]


def remaining_events(socket: ClientConnection) -> Iterator[dict[str, Any]]:
    """Yield the events up to the end of the stream."""
    while True:
        event = json.loads(socket.recv(timeout=60))
        yield event
        if event["event"] == "stream_end":
            return


def refused(answer: httpx.Response, status: int, param: str | None, code: str | None = None) -> str:
    """Return the message of an error response, after a check of its status, field and code."""
    assert answer.status_code == status, answer.text
    return is_error(answer.json(), param, code)


def is_error(answer: dict[str, Any], param: str | None, code: str | None = None) -> str:
    """Return the message of an error, after a check of its shape, field and code."""
    error = answer["error"]
    assert not LEAKS.search(str(error))
    assert set(error) == {"message", "param", "code"}
    assert error["param"] == param, error
    assert code is None or error["code"] == code
    return str(error["message"])


FIRST = ("red", "blue", "green", "white")
