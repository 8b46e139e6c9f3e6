"""SambaStudio's errors and predictions, and the model that a path names."""

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.silent_engine import SilentEngine
from starlette.types import Message

from llava_gateway.api.sambastudio.render import Prediction, render_error, render_error_event
from llava_gateway.api.sambastudio.router import NLP, V1, V2, Endpoint
from llava_gateway.engine.supervisor import Supervisor
from llava_gateway.errors import GatewayError, Unavailable
from llava_gateway.http.response import ResponseWriter
from llava_gateway.serving.model_registry import ModelRegistry, ServedModel
from llava_gateway.types import Delta, SamplingParams, TokenLogprob, Usage


def sent(error: GatewayError, started: bool, render: Any) -> list[Message]:
    messages: list[Message] = []

    async def send(message: Message) -> None:
        messages.append(message)

    asyncio.run(render(error, ResponseWriter(send, started=started)))
    return messages


def test_error_after_the_start_of_a_stream_is_its_last_piece() -> None:
    error = Unavailable("The engine has died.", code="engine_dead", retry_after=10)
    piece, end = sent(error, True, render_error)
    said = {"status_code": 503, "error": {"code": "engine_dead", "message": "The engine has died.", "details": ""}}
    assert piece["body"].endswith(b"}\n")
    assert json.loads(piece["body"]) == said
    assert not end.get("more_body")
    piece, _ = sent(error, True, render_error_event)
    name, data = piece["body"].removesuffix(b"\n\n").split(b"\n")
    assert name == b"event: error_event"
    assert json.loads(data.removeprefix(b"data: ")) == said


def test_error_has_retry_after() -> None:
    for render in (render_error, render_error_event):
        start, body = sent(Unavailable("The model is loading.", retry_after=5), False, render)
        assert (start["status"], dict(start["headers"])[b"retry-after"]) == (503, b"5")
        assert json.loads(body["body"]) == {"detail": "The model is loading."}


def test_half_characters_and_equal_tokens_are_rendered() -> None:
    places = (
        TokenLogprob(b"\xc3", -0.1, ((b"\xc3", -0.1), (b"a", -1.0), (b"a", -2.0))),
        TokenLogprob(b"\xa9", -0.2, ((b"\xa9", -0.2),)),
        TokenLogprob(b"!", -0.3, ((b"!", -0.3),)),
    )
    plan: Any = SimpleNamespace(sampling=SamplingParams(logprobs=3))
    answer: Any = SimpleNamespace(prompt="", usage=Usage(prompt_tokens=5, completion_tokens=4))
    prediction = Prediction(plan, answer)
    prediction.add(Delta(0, "é!", 3, "stop", None, places))
    rendered = prediction.render()
    assert rendered["tokens"] == ["<0xC3>", "<0xA9>", "!"]
    assert rendered["logprobs"]["text_offset"] == [0, 0, 1]
    assert rendered["logprobs"]["top_logprobs"][0] == {"<0xC3>": -0.1, "a": -1.0}


@pytest.mark.parametrize(
    ("project", "endpoint", "model"),
    [
        ("some", "thing", "served"),
        ("some", "alias", "alias"),
        ("alias", "thing", "alias"),
        ("llava-hf", "llava-1.5-7b-hf", "llava-hf/llava-1.5-7b-hf"),
    ],
)
@pytest.mark.parametrize("form", [V1, V2, NLP])
def test_path_may_name_the_model(form: Any, project: str, endpoint: str, model: str) -> None:
    served_model = ServedModel("served", Supervisor(SilentEngine, 10), more_names=("alias=llava-sn", "llava-hf/llava-1.5-7b-hf"))
    gateway: Any = SimpleNamespace(models=ModelRegistry([served_model]))
    bodies: Any = None
    assert Endpoint(form, gateway, bodies)._model(project=project, endpoint=endpoint) == model
