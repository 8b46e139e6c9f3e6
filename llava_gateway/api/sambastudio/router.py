"""The SambaStudio door: its predict API for LLaVA endpoints, v1, v2 and the older NLP paths, each with its stream."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from llava_gateway.api.base import Door
from llava_gateway.api.sambastudio.params import Params
from llava_gateway.api.sambastudio.protocol import Body, InputsBody, InstanceBody, InstancesBody, ItemsBody, Prompt, to_chat
from llava_gateway.api.sambastudio.render import Prediction, Stopwatch, event, fail, fail_events, line, piece, status
from llava_gateway.concurrency import together
from llava_gateway.errors import InvalidRequest
from llava_gateway.http.endpoints import JsonEndpoint
from llava_gateway.http.request_body import Bodies, JsonBody
from llava_gateway.http.response import Fail, Reply
from llava_gateway.serving.gateway import Gateway
from llava_gateway.serving.prepare import Plan
from llava_gateway.types import Delta

JSON_LINES = b"application/json-lines"
EVENTS = b"text/event-stream; charset=utf-8"


@dataclass(frozen=True)
class Form:
    """How one of the APIs writes what all of them say."""

    path: str
    body: type[Body]
    stream_body: type[Body]
    whole: Callable[[Sequence[Prompt], list[dict[str, Any]], float], dict[str, Any]]
    """The response, of prompts, their predictions and the seconds they took."""
    frame: Callable[[Prompt, dict[str, Any]], bytes]
    """A stream's response, framed."""
    media_type: bytes = JSON_LINES
    fail: Fail = fail


V1 = Form(
    "/api/predict/generic",
    InstancesBody,
    InstanceBody,
    lambda prompts, predictions, seconds: {"status": status(seconds), "predictions": predictions},
    lambda prompt, response: line({"result": {"responses": [response]}}),
)
V2 = Form(
    "/api/v2/predict/generic",
    ItemsBody,
    ItemsBody,
    lambda prompts, predictions, seconds: {
        "items": [{"id": prompt.id, "value": prediction} for prompt, prediction in zip(prompts, predictions, strict=True)]
    },
    lambda prompt, response: line({"result": {"items": [{"id": prompt.id, "value": response}]}}),
)
NLP = Form(
    "/api/predict/nlp",
    InputsBody,
    InputsBody,
    lambda prompts, predictions, seconds: {"data": predictions},
    lambda prompt, response: event(response),
    EVENTS,
    fail_events,
)


def door(gateway: Gateway, bodies: Bodies) -> Door:
    routes = []
    for form in (V1, V2, NLP):
        for path, endpoint in ((f"{form.path}/stream", Stream(form, gateway, bodies)), (form.path, Predict(form, gateway, bodies))):
            routes.append(Route(path + "/{project}/{endpoint}", endpoint, methods=["POST"]))
    return Door([*routes], fail)


@dataclass(frozen=True)
class Endpoint:
    """One path, as an ASGI app."""

    form: Form
    gateway: Gateway
    bodies: Bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        handle = partial(self.handle, self._model(**scope["path_params"]))
        await JsonEndpoint(handle, self.form.fail, self.gateway.admission, self.bodies)(scope, receive, send)

    async def handle(self, model: str, body: JsonBody, reply: Reply) -> None:
        raise NotImplementedError

    def _model(self, project: str, endpoint: str) -> str:
        """The path names projects and endpoints as the client likes, a model among them if it knows one."""
        names = self.gateway.models
        return next((name for name in (endpoint, f"{project}/{endpoint}", project) if name in names), self.gateway.model_name)

    async def _plan(self, body: Body, prompts: Sequence[Prompt], model: str, *, stream: bool) -> list[Plan]:
        params = Params.parse(body.params or {})
        return await self.gateway.plan(*(to_chat(prompt, params, model, stream=stream) for prompt in prompts))


class Predict(Endpoint):
    """Whole answers, of several prompts at once."""

    async def handle(self, model: str, body: JsonBody, reply: Reply) -> None:
        start = time.perf_counter()
        asked = self.form.body.read(body)
        prompts = asked.prompts()
        plans = await self._plan(asked, prompts, model, stream=False)
        predictions = await together(self._predict, plans, self.gateway.settings.max_running)
        await reply.json(200, self.form.whole(prompts, predictions, time.perf_counter() - start))

    async def _predict(self, plan: Plan) -> dict[str, Any]:
        async with self.gateway.answer(plan) as answer:
            prediction = Prediction(plan, answer)
            async for delta in answer:
                prediction.add(delta)
            return prediction.render()


class Stream(Endpoint):
    """The answer to one prompt, as it comes."""

    async def handle(self, model: str, body: JsonBody, reply: Reply) -> None:
        stopwatch = Stopwatch()
        asked = self.form.stream_body.read(body)
        prompt, *others = asked.prompts()
        if others:
            raise InvalidRequest(f"{asked.holder}: a stream is of one prompt; send a request for each.", param=asked.holder)
        (plan,) = await self._plan(asked, [prompt], model, stream=True)
        frame = partial(self.form.frame, prompt)
        async with self.gateway.answer(plan) as answer:
            prediction = Prediction(plan, answer)

            def push(delta: Delta) -> bytes:
                stopwatch.add(delta)
                prediction.add(delta)
                return frame(piece(delta.text)) if delta.text else b""

            # A comment would break clients that parse each line, so what says nothing is a response without text.
            async with reply.stream(self.form.media_type, self.gateway.settings.keep_alive, frame(piece(""))):
                await reply.deltas(answer, push)
                last = prediction.render() | stopwatch.render(answer)
                await reply.frames(frame({"stream_token": "", "is_last_response": True} | last))
