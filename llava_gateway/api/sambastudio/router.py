"""The routes of SambaStudio's predict APIs for LLaVA endpoints: v1, v2 and the older NLP API.

Each API has one path for whole answers and one for streams.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from llava_gateway.api.base import Api
from llava_gateway.api.sambastudio.operations import DESCRIPTION
from llava_gateway.api.sambastudio.params import Params
from llava_gateway.api.sambastudio.protocol import InputsBody, InstanceBody, InstancesBody, ItemsBody, PredictBody, Prompt, to_chat
from llava_gateway.api.sambastudio.render import (
    Prediction,
    Stopwatch,
    json_line,
    render_error,
    render_error_event,
    render_status,
    server_sent_event,
    stream_response,
)
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
class PredictApi:
    """One version of the predict API: its bodies, and the shape of its responses."""

    path: str
    body: type[PredictBody]
    stream_body: type[PredictBody]
    render_response: Callable[[Sequence[Prompt], list[dict[str, Any]], float], dict[str, Any]]
    """Returns the whole response for prompts, their predictions, and the seconds that they took."""
    render_frame: Callable[[Prompt, dict[str, Any]], bytes]
    """Returns a frame of a stream for a prompt and a stream response."""
    media_type: bytes = JSON_LINES
    """The media type of streams."""
    render_error: ErrorRenderer = render_error


V1 = PredictApi(
    "/api/predict/generic",
    InstancesBody,
    InstanceBody,
    lambda prompts, predictions, seconds: {"status": render_status(seconds), "predictions": predictions},
    lambda prompt, response: json_line({"result": {"responses": [response]}}),
)
V2 = PredictApi(
    "/api/v2/predict/generic",
    ItemsBody,
    ItemsBody,
    lambda prompts, predictions, seconds: {
        "items": [{"id": prompt.id, "value": prediction} for prompt, prediction in zip(prompts, predictions, strict=True)]
    },
    lambda prompt, response: json_line({"result": {"items": [{"id": prompt.id, "value": response}]}}),
)
NLP = PredictApi(
    "/api/predict/nlp",
    InputsBody,
    InputsBody,
    lambda prompts, predictions, seconds: {"data": predictions},
    lambda prompt, response: server_sent_event(response),
    EVENTS,
    render_error_event,
)


def create_api(gateway: Gateway, body_reader: RequestBodyReader) -> Api:
    """Create the three predict APIs."""
    routes = []
    for predict_api in (V1, V2, NLP):
        for path, endpoint in (
            (f"{predict_api.path}/stream", StreamEndpoint(predict_api, gateway, body_reader)),
            (predict_api.path, PredictEndpoint(predict_api, gateway, body_reader)),
        ):
            routes.append(Route(path + "/{project}/{endpoint}", endpoint, methods=["POST"]))
    return Api([*routes], render_error, description=DESCRIPTION)


@dataclass(frozen=True)
class Endpoint:
    """One path, as an ASGI app."""

    predict_api: PredictApi
    gateway: Gateway
    body_reader: RequestBodyReader

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        handle = partial(self.handle, self._model(**scope["path_params"]))
        await JsonEndpoint(handle, self.predict_api.render_error, self.gateway.admission, self.body_reader)(scope, receive, send)

    async def handle(self, model: str, body: JsonBody, response: ResponseWriter) -> None:
        """Answer a request to `model`."""
        raise NotImplementedError

    def _model(self, project: str, endpoint: str) -> str:
        """Return the model that the path names. The client chooses both names freely; other names mean the first served model."""
        return self.gateway.models.first_served(endpoint, f"{project}/{endpoint}", project)

    async def _prepare(
        self, request: PredictBody, prompts: Sequence[Prompt], model: str, body: JsonBody, *, stream: bool
    ) -> list[PreparedRequest]:
        params = Params.parse(request.params or {})
        return await self.gateway.prepare(*(to_chat(prompt, params, model, body.parse_more, stream=stream) for prompt in prompts))


class PredictEndpoint(Endpoint):
    """Answers one or more prompts with one response."""

    async def handle(self, model: str, body: JsonBody, response: ResponseWriter) -> None:
        start = time.perf_counter()
        request = self.predict_api.body.read(body)
        prompts = request.prompts()
        prepared = await self._prepare(request, prompts, model, body, stream=False)
        predictions = await gather_limited(self._predict, prepared, self.gateway.settings.max_running)
        await response.json(200, self.predict_api.render_response(prompts, predictions, time.perf_counter() - start))

    async def _predict(self, prepared: PreparedRequest) -> dict[str, Any]:
        async with self.gateway.open_prepared(prepared) as deltas:
            prediction = Prediction(prepared, deltas)
            async for delta in deltas:
                prediction.add(delta)
            return prediction.render()


class StreamEndpoint(Endpoint):
    """Answers one prompt with a stream."""

    async def handle(self, model: str, body: JsonBody, response: ResponseWriter) -> None:
        stopwatch = Stopwatch()
        request = self.predict_api.stream_body.read(body)
        prompt, *others = request.prompts()
        if others:
            field = request.prompts_field
            raise InvalidRequest(f"{field}: a stream can have only one prompt; send one request for each prompt.", param=field)
        (prepared,) = await self._prepare(request, [prompt], model, body, stream=True)
        render_frame = partial(self.predict_api.render_frame, prompt)
        async with self.gateway.open_prepared(prepared) as deltas:
            prediction = Prediction(prepared, deltas)

            def render_delta(delta: Delta) -> bytes:
                stopwatch.add(delta)
                prediction.add(delta)
                return render_frame(stream_response(delta.text)) if delta.text else b""

            # Clients parse every line, so a comment would break them. A response without text keeps the connection alive instead.
            silence = render_frame(stream_response(""))
            async with response.stream(self.predict_api.media_type, self.gateway.settings.keep_alive, silence):
                await response.deltas(deltas, render_delta)
                totals = prediction.render() | stopwatch.render(deltas)
                await response.frames(render_frame({"stream_token": "", "is_last_response": True} | totals))
