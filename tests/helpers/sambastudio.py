"""Requests to SambaStudio's predict API, and checks of its responses."""

import base64
import json
import re
from typing import Any

import httpx
from helpers.errors import LEAKS
from helpers.server import HTTP, ROOT, Server

from llava_gateway.demo.images import Grid, draw, encode

IDS = "my-project/my-endpoint"
PATH = f"/api/predict/generic/{IDS}"
STREAM = f"/api/predict/generic/stream/{IDS}"
V2_PATH = f"/api/v2/predict/generic/{IDS}"
V2_STREAM = f"/api/v2/predict/generic/stream/{IDS}"
NLP_PATH = f"/api/predict/nlp/{IDS}"
NLP_STREAM = f"/api/predict/nlp/stream/{IDS}"
GRID: Grid = ("red", "blue", "green", "orange")
OTHER: Grid = ("white", "yellow", "black", "purple")
NO_IMAGE = "I see no image. I am a small demo model: send me an image and ask me to describe it."
PREDICTION = {"completion", "logprobs", "prompt", "stop_reason", "tokens", "total_tokens_count"}


def base64_image(grid: Grid) -> str:
    """Return an image of a grid in base64."""
    return base64.b64encode(encode(draw(grid))).decode()


def about(*grids: Grid, prompt: str = "Describe this image.") -> dict[str, Any]:
    """Return an instance with images and a question."""
    content = [base64_image(grid) for grid in grids]
    return {"prompt": prompt, "image_content": content[0] if len(content) == 1 else content}


def typed(**params: Any) -> dict[str, Any]:
    """Return parameters in the form of SambaStudio's Python clients."""
    return {name: {"type": type(value).__name__, "value": str(value)} for name, value in params.items()}


def post(server: Server, path: str, body: dict[str, Any], **options: Any) -> httpx.Response:
    return HTTP.post(server.url + path, json=body, timeout=120, **options)


def predict(server: Server, *instances: Any, **params: Any) -> list[dict[str, Any]]:
    """Return the predictions for a batch."""
    answer = post(server, PATH, {"instances": list(instances), "params": typed(**({"max_tokens_to_generate": 200} | params))})
    assert answer.status_code == 200, answer.text
    predictions: list[dict[str, Any]] = answer.json()["predictions"]
    return predictions


def refused(answer: httpx.Response, status: int, field: str = "") -> str:
    """Return the detail of an error response, after a check of its status and the field that it names."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert not LEAKS.search(answer.text)
    assert set(answer.json()) == {"detail"}
    detail: str = answer.json()["detail"]
    assert re.match(re.escape(field) + r"(: | is not supported)", detail) if field else detail
    return detail


def conversation(*turns: tuple[str, str | None], **fields: Any) -> str:
    """Return a conversation as the text of a prompt."""
    messages = [{"message_id": None, "role": role, "content": content} for role, content in turns]
    return json.dumps({"conversation_id": "some-id", "messages": messages} | fields)


DOCUMENT = (ROOT / "docs" / "sambastudio.md").read_text()
