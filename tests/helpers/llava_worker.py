"""Requests to LLaVA's worker API, and checks of its responses."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx
from helpers.errors import LEAKS
from helpers.requests import MODEL
from helpers.server import Server
from helpers.waiting import wait_for

from llava_gateway.demo.images import Grid, draw, encode
from llava_gateway.prompts.templates import CURIOUS_HUMAN

GENERATE = "/worker_generate_stream"
PAGE_NAME = f"{MODEL}-v1"
"""The name of the demo model for which LLaVA's web page writes prompts in the format llava_v1."""
GRID: Grid = ("red", "blue", "green", "orange")
HELLO = "USER: Hello ASSISTANT:"


def base64_of(grid: Grid) -> str:
    return base64.b64encode(encode(draw(grid))).decode()


def llava_v1(*turns: str | None) -> str:
    """Return a prompt in the format llava_v1, with the turns of user and assistant in alternation. None: the turn to generate."""
    prompt = CURIOUS_HUMAN + " "
    for number, turn in enumerate(turns):
        role, end = ("ASSISTANT", "</s>") if number % 2 else ("USER", " ")
        prompt += f"{role}:" if turn is None else f"{role}: {turn}{end}"
    return prompt


def llava_v0(*turns: str | None) -> str:
    """Return a prompt in the format llava_v0, with the turns of user and assistant in alternation. None: the turn to generate."""
    prompt = f"{CURIOUS_HUMAN}###"
    for number, turn in enumerate(turns):
        role = "Assistant" if number % 2 else "Human"
        prompt += f"{role}:" if turn is None else f"{role}: {turn}###"
    return prompt


def page_template(model: str) -> str:
    """Return the conversation template that LLaVA's web page picks for a model, as `http_bot` in its gradio_web_server.py does."""
    name = model.lower()
    if "llava" not in name:
        return "mpt_text" if "mpt" in model else "llama_2" if "llama-2" in model else "vicuna_v1"
    if "llama-2" in name:
        return "llava_llama_2"
    if "mistral" in name or "mixtral" in name:
        return "mistral_orca" if "orca" in name else "chatml_direct" if "hermes" in name else "mistral_instruct"
    if "llava-v1.6-34b" in name:
        return "chatml_direct"
    if "v1" not in name and "mpt" in name:
        return "mpt"
    version = "v1" if "v1" in name else "v0"
    tagged = "mmtag" in name or ("plain" in name and "finetune" not in name)
    return f"{version}_mmtag" if tagged else f"llava_{version}"


DESCRIBE = llava_v1("<image>\nDescribe this image.", None)


def chunks(pieces: Iterator[bytes]) -> Iterator[dict[str, Any]]:
    """Yield the chunks of a stream without the empty ones, as `iter_lines(delimiter=b"\\0")` of requests does."""
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\0")
        yield from (json.loads(chunk) for chunk in whole if chunk)
    assert rest == b""


def request(prompt: str = HELLO, **fields: Any) -> dict[str, Any]:
    """Return a greedy request for an answer."""
    return {"model": MODEL, "prompt": prompt, "temperature": 0} | fields


def refused(answer: httpx.Response, status: int, error_code: int, *named: str) -> None:
    """Check that the response is one chunk with an error code and a message that contains the names."""
    assert answer.status_code == status, answer.text
    assert answer.content.endswith(b"\0")
    (chunk,) = chunks(iter([answer.content]))
    assert set(chunk) == {"text", "error_code"}
    assert chunk["error_code"] == error_code
    assert not LEAKS.search(chunk["text"])
    for name in named:
        assert name in chunk["text"]


def tokens(server: Server) -> dict[str, float]:
    """Wait until no request is in flight, and return the numbers of text, image and completion tokens that the gateway has counted."""
    wait_for(lambda: server.in_flight() == 0)
    return {kind: server.metric(f'llava_tokens_total{{kind="{kind}"}}') for kind in ("text", "image", "completion")}


def tokens_since(server: Server, before: dict[str, float]) -> dict[str, float]:
    """Return the numbers of tokens that the gateway has counted since an earlier call of `tokens`."""
    return {kind: count - before[kind] for kind, count in tokens(server).items()}
