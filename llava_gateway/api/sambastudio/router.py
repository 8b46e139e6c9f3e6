"""The SambaStudio door: its predict API for LLaVA endpoints, v1, v2 and the older NLP paths, each with its stream."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from llava_gateway.api.base import Api
from llava_gateway.api.sambastudio.params import Params
from llava_gateway.api.sambastudio.protocol import Body, InputsBody, InstanceBody, InstancesBody, ItemsBody, Prompt, to_chat
from llava_gateway.api.sambastudio.render import Prediction, Stopwatch, event, line, piece, render_error, render_error_event, status
from llava_gateway.concurrency import gather_limited
from llava_gateway.errors import InvalidRequest
from llava_gateway.http.endpoints import JsonEndpoint
from llava_gateway.http.request_body import JsonBody, RequestBodyReader
from llava_gateway.http.response import ErrorRenderer, ResponseWriter
from llava_gateway.serving.gateway import Gateway
from llava_gateway.serving.prepare import PreparedRequest
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
    render_error: ErrorRenderer = render_error


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
    render_error_event,
)


def create_api(gateway: Gateway, body_reader: RequestBodyReader) -> Api:
    routes = []
    for form in (V1, V2, NLP):
        for path, endpoint in (
            (f"{form.path}/stream", Stream(form, gateway, body_reader)),
            (form.path, Predict(form, gateway, body_reader)),
        ):
            routes.append(Route(path + "/{project}/{endpoint}", endpoint, methods=["POST"]))
    return Api([*routes], render_error)


@dataclass(frozen=True)
class Endpoint:
    """One path, as an ASGI app."""

    form: Form
    gateway: Gateway
    body_reader: RequestBodyReader

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        handle = partial(self.handle, self._model(**scope["path_params"]))
        await JsonEndpoint(handle, self.form.render_error, self.gateway.admission, self.body_reader)(scope, receive, send)

    async def handle(self, model: str, body: JsonBody, response: ResponseWriter) -> None:
        raise NotImplementedError

    def _model(self, project: str, endpoint: str) -> str:
        """The path names projects and endpoints as the client likes, a model among them if it knows one."""
        names = self.gateway.models
        return next((name for name in (endpoint, f"{project}/{endpoint}", project) if name in names), self.gateway.model_name)

    async def _prepare(self, body: Body, prompts: Sequence[Prompt], model: str, *, stream: bool) -> list[PreparedRequest]:
        params = Params.parse(body.params or {})
        return await self.gateway.prepare(*(to_chat(prompt, params, model, stream=stream) for prompt in prompts))


class Predict(Endpoint):
    """Whole answers, of several prompts at once."""

    async def handle(self, model: str, body: JsonBody, response: ResponseWriter) -> None:
        start = time.perf_counter()
        asked = self.form.body.read(body)
        prompts = asked.prompts()
        prepared = await self._prepare(asked, prompts, model, stream=False)
        predictions = await gather_limited(self._predict, prepared, self.gateway.settings.max_running)
        await response.json(200, self.form.whole(prompts, predictions, time.perf_counter() - start))

    async def _predict(self, prepared: PreparedRequest) -> dict[str, Any]:
        async with self.gateway.open_prepared(prepared) as answer:
            prediction = Prediction(prepared, answer)
            async for delta in answer:
                prediction.add(delta)
            return prediction.render()


class Stream(Endpoint):
    """The answer to one prompt, as it comes."""

    async def handle(self, model: str, body: JsonBody, response: ResponseWriter) -> None:
        stopwatch = Stopwatch()
        asked = self.form.stream_body.read(body)
        prompt, *others = asked.prompts()
        if others:
            raise InvalidRequest(f"{asked.holder}: a stream is of one prompt; send a request for each.", param=asked.holder)
        (prepared,) = await self._prepare(asked, [prompt], model, stream=True)
        frame = partial(self.form.frame, prompt)
        async with self.gateway.open_prepared(prepared) as answer:
            prediction = Prediction(prepared, answer)

            def push(delta: Delta) -> bytes:
                stopwatch.add(delta)
                prediction.add(delta)
                return frame(piece(delta.text)) if delta.text else b""

            # A comment would break clients that parse each line, so what says nothing is a response without text.
            async with response.stream(self.form.media_type, self.gateway.settings.keep_alive, frame(piece(""))):
                await response.deltas(answer, push)
                last = prediction.render() | stopwatch.render(answer)
                await response.frames(frame({"stream_token": "", "is_last_response": True} | last))
