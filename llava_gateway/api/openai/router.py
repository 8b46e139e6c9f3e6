"""The routes of the OpenAI API: `/v1/...` in OpenAI's shapes, `/tokenize`, `/detokenize` and `/version` in vLLM's."""

from functools import partial
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from llava_gateway import __version__
from llava_gateway.api.base import Api, error_headers, json_response
from llava_gateway.api.openai import sambastudio
from llava_gateway.api.openai.chat_request import ChatCompletionRequest, to_chat
from llava_gateway.api.openai.chat_response import ChatChunkRenderer, collect_chat_completion
from llava_gateway.api.openai.completion_request import TextCompletionRequest
from llava_gateway.api.openai.completions import TextCompletion
from llava_gateway.api.openai.decision_request import DecisionRequest
from llava_gateway.api.openai.decisions import decide
from llava_gateway.api.openai.files import file_routes
from llava_gateway.api.openai.operations import DEEPINFRA_DESCRIPTION, DESCRIPTION, SAMBASTUDIO_DESCRIPTION
from llava_gateway.api.openai.responses.handlers import Responses
from llava_gateway.api.openai.responses.request import CreateResponse
from llava_gateway.api.openai.streaming import DONE, RenderOptions, error_body
from llava_gateway.api.openai.tokenization import detokenize, tokenize
from llava_gateway.errors import GatewayError
from llava_gateway.http.endpoints import Handle, JsonEndpoint
from llava_gateway.http.request_body import JsonBody, RequestBodyReader
from llava_gateway.http.response import JSON, ResponseWriter
from llava_gateway.serving.delta_stream import DeltaStream
from llava_gateway.serving.gateway import Gateway

GenerationBody = TypeVar("GenerationBody", ChatCompletionRequest, TextCompletionRequest, CreateResponse, DecisionRequest)


def create_api(gateway: Gateway, body_reader: RequestBodyReader) -> Api:
    """Create the OpenAI API."""
    handlers = OpenAI(gateway)
    return Api(
        [
            *_routes("/v1", handlers, body_reader),
            _post("/tokenize", handlers.tokenize, gateway, body_reader),
            _post("/detokenize", handlers.detokenize, gateway, body_reader),
            Route("/version", handlers.version, methods=["GET"]),
        ],
        render_error,
        description=DESCRIPTION,
    )


def create_deepinfra_api(gateway: Gateway, body_reader: RequestBodyReader) -> Api:
    """Create the OpenAI API below DeepInfra's prefix `/v1/openai`."""
    return Api(_routes("/v1/openai", OpenAI(gateway), body_reader), render_error, description=DEEPINFRA_DESCRIPTION)


def create_sambastudio_api(gateway: Gateway, body_reader: RequestBodyReader) -> Api:
    """Create chat completions on SambaStudio's paths, which name a project and an endpoint."""
    answer = partial(OpenAI(gateway).answer_chat, end_with_content=True)
    chat = sambastudio.SambaStudioChat(gateway, body_reader, answer, render_error)
    return Api([Route(path, chat, methods=["POST"]) for path in sambastudio.PATHS], render_error, description=SAMBASTUDIO_DESCRIPTION)


def _routes(prefix: str, handlers: "OpenAI", body_reader: RequestBodyReader) -> list[BaseRoute]:
    return [
        _post(f"{prefix}/chat/completions", handlers.chat_completions, handlers.gateway, body_reader),
        _post(f"{prefix}/completions", handlers.completions, handlers.gateway, body_reader),
        _post(f"{prefix}/responses", handlers.responses.create, handlers.gateway, body_reader),
        Route(f"{prefix}/responses/{{id}}", handlers.responses.retrieve, methods=["GET"]),
        Route(f"{prefix}/responses/{{id}}", handlers.responses.delete, methods=["DELETE"]),
        Route(f"{prefix}/responses/{{id}}/input_items", handlers.responses.input_items, methods=["GET"]),
        Route(f"{prefix}/responses/{{id}}/cancel", handlers.responses.cancel, methods=["POST"]),
        _post(f"{prefix}/decisions", handlers.decisions, handlers.gateway, body_reader),
        Route(f"{prefix}/models", handlers.models, methods=["GET"]),
        Route(f"{prefix}/models/{{model:path}}", handlers.model, methods=["GET"]),
        *file_routes(prefix, handlers.gateway, body_reader, render_error),
    ]


def _post(path: str, handle: Handle, gateway: Gateway, body_reader: RequestBodyReader) -> Route:
    return Route(path, JsonEndpoint(handle, render_error, gateway.admission, body_reader), methods=["POST"])


class OpenAI:
    """The handlers of the endpoints."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.keep_alive = gateway.settings.keep_alive
        self.responses = Responses(gateway, self._with_model)

    async def chat_completions(self, body: JsonBody, response: ResponseWriter) -> None:
        await self.answer_chat(self._with_model(ChatCompletionRequest.read(body)), response)

    async def answer_chat(self, request: ChatCompletionRequest, response: ResponseWriter, *, end_with_content: bool = False) -> None:
        """Answer a request that names its model. `end_with_content`: as in `RenderOptions`."""
        async with self.gateway.open(to_chat(request)) as deltas:
            options = RenderOptions.of(
                request,
                deltas.model,
                logprobs=bool(request.logprobs),
                functions=request.uses_functions,
                end_with_content=end_with_content,
            )
            if deltas.tools_ignored:
                response.add_header(b"x-llava-tools", b"ignored")
            if request.stream:
                await self._stream_chat(request, options, deltas, response)
                return
            completion = await collect_chat_completion(deltas, request.model, options)
        # The response is written after the block, when the key's usage is recorded: its headers have what is left of the key's limits.
        with self.gateway.answer_memory.waiting(completion):
            await response.parts(200, completion, JSON)

    async def _stream_chat(
        self, request: ChatCompletionRequest, options: RenderOptions, deltas: DeltaStream, response: ResponseWriter
    ) -> None:
        renderer = ChatChunkRenderer(request.model, deltas, request.stream_options, options, choices=request.n or 1)
        async with response.events(self.keep_alive, renderer.render_end):
            await response.deltas(deltas, renderer.render_delta, renderer.text_frame)

    async def completions(self, body: JsonBody, response: ResponseWriter) -> None:
        await TextCompletion(self.gateway, self._with_model(TextCompletionRequest.read(body))).answer(response)

    async def decisions(self, body: JsonBody, response: ResponseWriter) -> None:
        await decide(self.gateway, self._with_model(DecisionRequest.read(body)), response)

    async def models(self, request: Request) -> Response:
        return json_response({"object": "list", "data": [self._model(name) for name in self.gateway.models.names()]})

    async def model(self, request: Request) -> Response:
        self.gateway.models.check(request.path_params["model"])
        return json_response(self._model(request.path_params["model"]))

    def _model(self, name: str) -> dict[str, Any]:
        """Return OpenAI's description of a model, with vLLM's fields `root`, `max_model_len` (once the model has loaded) and `parent`."""
        models, served_model = self.gateway.models, self.gateway.models.get(name)
        model: dict[str, Any] = {"id": name, "object": "model", "created": models.created(name), "owned_by": "llava-gateway"}
        model["root"] = served_model.root
        if served_model.context_length:
            model["max_model_len"] = served_model.context_length
        if parent := models.parent(name):
            model["parent"] = parent
        return model

    def _with_model(self, request: GenerationBody) -> GenerationBody:
        """Return the request with the name of its model: that of the only model if the request names none. Raises GatewayError."""
        return request if request.model else request.model_copy(update={"model": self.gateway.models.only_name()})

    async def tokenize(self, body: JsonBody, response: ResponseWriter) -> None:
        await response.json(200, await tokenize(self.gateway, body))

    async def detokenize(self, body: JsonBody, response: ResponseWriter) -> None:
        await response.json(200, detokenize(self.gateway, body))

    async def version(self, request: Request) -> Response:
        return json_response({"version": __version__})


async def render_error(error: GatewayError, response: ResponseWriter) -> None:
    """Write an error: as the response, or as the last event of a stream that has started."""
    if response.render_failure:
        await response.end(response.render_failure(error))
    elif response.started:
        await response.event(error_body(error))
        await response.end(DONE)
    else:
        await response.body(error.status, error_body(error), b"application/json", error_headers(error))
