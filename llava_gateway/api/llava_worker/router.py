"""The API of LLaVA's own serving stack: its controller and its model worker in one.

The clients are LLaVA's web server and `test_message`. An answer is a stream of chunks. Each chunk is a JSON object,
`{"text": ..., "error_code": 0}`, and a NUL; the text is the prompt and the whole answer so far. An error is also one chunk, and its text is
the error message.
"""

import dataclasses
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Annotated, Any, ClassVar

import orjson
from pydantic import Discriminator, Field, Tag
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from llava_gateway.api.base import Api, json_response
from llava_gateway.api.llava_worker.controller_client import worker_status
from llava_gateway.api.llava_worker.page_names import page_names, served_name
from llava_gateway.api.operation import ARRAY, BOOLEAN, INTEGER, STRING, ApiDescription, Operation, Schema, object_schema
from llava_gateway.api.schema import TAG_PREFIX, ImageString, RefusedField, RequestBody
from llava_gateway.errors import GatewayError, InvalidRequest, NotFound, Unavailable
from llava_gateway.http.endpoints import JsonEndpoint
from llava_gateway.http.request_body import JsonBody, RequestBodyReader
from llava_gateway.http.response import ResponseWriter, retry_after
from llava_gateway.serving.gateway import Gateway
from llava_gateway.types import CompletionRequest, Delta, ImageBase64, SamplingParams

MEDIA_TYPE = b"application/octet-stream"
NUL = b"\0"
"""Ends each chunk. A NUL alone is an empty chunk, which clients skip."""
WORKER_ERROR, NO_WORKER, UNREACHABLE = 1, 2, 3
"""LLaVA's error codes."""
MAX_NEW_TOKENS = 256
TOP_K = 50
GREEDY = 0.001
"""LLaVA's worker takes temperatures up to this one for 0."""


def _stop_tag(stop: Any) -> str:
    return TAG_PREFIX + ("string" if isinstance(stop, str) else "list")


_StopString = Annotated[str, Field(max_length=10_000)]
_Stop = Annotated[
    Annotated[_StopString, Tag(TAG_PREFIX + "string")]
    | Annotated[list[_StopString], Field(max_length=4, fail_fast=True), Tag(TAG_PREFIX + "list")],
    Discriminator(_stop_tag),
]


class GenerateRequest(RequestBody):
    """`POST /worker_generate_stream`."""

    model: str | None = Field(
        None, description="a name from /list_models or /v1/models; another name gives error 2; default: the first served model"
    )
    prompt: str = Field(
        description="goes to the model unchanged, control tokens included; `<image>` stands for each image and the tokens around it"
    )
    images: Annotated[list[ImageString], Field(max_length=1024, fail_fast=True)] | None = Field(
        None, description="image files in base64, one for each `<image>` in the prompt; URLs are not fetched"
    )
    temperature: float | None = Field(None, ge=0, le=2, description="0 to 2; values up to 0.001 always take the likeliest token; default 1")
    top_p: float | None = Field(
        None,
        ge=0,
        le=1,
        description="0 to 1: sample only from the likeliest tokens whose probabilities add up to this share; "
        "0 always takes the likeliest token; default 1",
    )
    top_k: int | None = Field(None, ge=-1, lt=1 << 31, description="sample only from the k likeliest tokens; 0 and -1 are off; default 50")
    repetition_penalty: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="above 1 discourages repetition; clamped to 0.01 to 100; default 1"
    )
    max_new_tokens: int | None = Field(
        None, ge=1, description="the maximum number of tokens in the answer, lowered if the context has less room; default 256"
    )
    stop: _Stop | None = Field(
        None,
        description="one string, or a list of up to four; the answer ends before the first of them; "
        "empty strings and strings of spaces are ignored",
    )

    refused: ClassVar = {
        "logprobs": RefusedField("chunks have only text"),
        "echo": RefusedField("the text always begins with the prompt", allowed_values=(None, True)),
    }
    ignored: ClassVar = {"stream": "the answer is always a stream"}


class AddressRequest(RequestBody):
    """`POST /get_worker_address`."""

    model: str = Field(description="a name from /list_models or /v1/models; another name gives an empty address")


class HeartBeat(RequestBody):
    """`POST /receive_heart_beat`."""

    worker_name: str = Field(description="a worker's address; the only worker is this server")

    ignored: ClassVar = {"queue_length": "the server knows its own queue"}


ERROR: Schema = STRING | {
    "title": "LlavaWorkerError",
    "description": 'One chunk, `{"text": "the error message", "error_code": 1}` and a NUL. `error_code` is 2 for an unknown model, 3 while '
    "the model is not available, and 1 for all other errors.",
}
DESCRIPTION = ApiDescription(
    "LLaVA's controller and worker",
    "The API of LLaVA's own serving stack. This server is the controller and the only worker.",
    (
        Operation(
            "POST",
            "/worker_generate_stream",
            "Continue a prompt with images",
            GenerateRequest,
            other_answers={
                "application/octet-stream": 'Chunks, each `{"text": "the prompt and the answer so far", "error_code": 0}` and a NUL; '
                "a NUL alone is an empty chunk"
            },
        ),
        Operation(
            "POST",
            "/worker_get_status",
            "Return the worker's models and its queue",
            answer=object_schema(model_names=ARRAY, speed=INTEGER, queue_length=INTEGER),
            errors={503: "The model is loading, or is not available"},
        ),
        Operation("POST", "/refresh_all_workers", "Do nothing: the only worker is this server", answer={"type": "null"}),
        Operation("POST", "/list_models", "List the served models", answer=object_schema(models=ARRAY)),
        Operation("POST", "/register_worker", "Refuse another worker", errors={400: "This server accepts no other workers"}),
        Operation("POST", "/get_worker_address", "Return this server's address", AddressRequest, object_schema(address=STRING)),
        Operation("POST", "/receive_heart_beat", "Return whether a worker is this server", HeartBeat, object_schema(exist=BOOLEAN)),
    ),
    error=ERROR,
    error_media_type="application/octet-stream",
)


def create_api(gateway: Gateway, body_reader: RequestBodyReader) -> Api:
    """Create the API."""
    handlers = LlavaWorker(gateway)
    generate = JsonEndpoint(handlers.worker_generate_stream, render_error, gateway.admission, body_reader)
    return Api(
        [
            Route("/worker_generate_stream", generate, methods=["POST"]),
            Route("/worker_get_status", handlers.worker_get_status, methods=["POST"]),
            Route("/refresh_all_workers", handlers.refresh_all_workers, methods=["POST"]),
            Route("/list_models", handlers.list_models, methods=["POST"]),
            Route("/register_worker", handlers.register_worker, methods=["POST"]),
            Route("/get_worker_address", _AddressEndpoint(handlers.get_worker_address, gateway, body_reader), methods=["POST"]),
            Route("/receive_heart_beat", _AddressEndpoint(handlers.receive_heart_beat, gateway, body_reader), methods=["POST"]),
        ],
        render_error,
        description=DESCRIPTION,
    )


class LlavaWorker:
    """The handlers of the controller's and the worker's endpoints. Clients send no body if the handler takes a `Request`."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.keep_alive = gateway.settings.keep_alive

    async def worker_generate_stream(self, body: JsonBody, response: ResponseWriter) -> None:
        request = GenerateRequest.read(body)
        model = self.gateway.model_name if request.model is None else served_name(self.gateway.models, request.model)
        completion = to_completion(request, model)
        async with self.gateway.open(completion) as deltas, response.stream(MEDIA_TYPE, self.keep_alive, silence=NUL):
            await response.deltas(deltas, ChunkRenderer(request.prompt).render_delta)

    async def worker_get_status(self, request: Request) -> Response:
        return json_response(worker_status(self.gateway))

    async def refresh_all_workers(self, request: Request) -> Response:
        return json_response(None)

    async def list_models(self, request: Request) -> Response:
        return json_response({"models": page_names(self.gateway.models)})

    async def register_worker(self, request: Request) -> Response:
        raise InvalidRequest(
            "This server is controller and worker in one, and accepts no other workers. To have several workers behind one page, run "
            "LLaVA's own controller, register the other workers there, and start this server with --controller and that controller's URL."
        )

    async def get_worker_address(self, address: str, body: JsonBody, response: ResponseWriter) -> None:
        request = AddressRequest.read(body)
        models = self.gateway.models
        await response.json(200, {"address": address if served_name(models, request.model) in models.names() else ""})

    async def receive_heart_beat(self, address: str, body: JsonBody, response: ResponseWriter) -> None:
        await response.json(200, {"exist": HeartBeat.read(body).worker_name.rstrip("/") == address})


@dataclasses.dataclass(frozen=True)
class _AddressEndpoint:
    """A JSON endpoint, as an ASGI app. Its handler also gets the address under which the client has reached this server."""

    handle: Callable[[str, JsonBody, ResponseWriter], Coroutine[Any, Any, None]]
    gateway: Gateway
    body_reader: RequestBodyReader

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        address = str(Request(scope).base_url).rstrip("/")
        endpoint = JsonEndpoint(partial(self.handle, address), render_error, self.gateway.admission, self.body_reader)
        await endpoint(scope, receive, send)


def to_completion(request: GenerateRequest, model: str) -> CompletionRequest:
    """Return the gateway's request to `model`.

    Clients send the same max_new_tokens however long the chat is. The gateway therefore lowers the answer's length to fit the context.
    """
    temperature = 1.0 if request.temperature is None else request.temperature
    stop = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
    return CompletionRequest(
        model=model,
        prompt=request.prompt,
        images=tuple(ImageBase64(image, f"images[{index}]") for index, image in enumerate(request.images or ())),
        sampling=SamplingParams(
            max_tokens=request.max_new_tokens or MAX_NEW_TOKENS,
            lower_max_tokens_to_fit=True,
            temperature=0.0 if temperature <= GREEDY or request.top_p == 0 else temperature,
            top_p=request.top_p or 1.0,
            top_k=max(TOP_K if request.top_k is None else request.top_k, 0),
            repetition_penalty=request.repetition_penalty or 1.0,
            # `test_message` sends vicuna_v1's separator, a space, which would end an answer before its first word.
            stop=tuple(each for each in stop if each.strip(" ")),
            # As in LLaVA's worker: a separator may be a control token, such as `<|im_end|>`, and a hidden one would not stop the answer.
            skip_special_tokens=False,
        ),
        stream=True,
    )


class ChunkRenderer:
    """Renders deltas as chunks. Each chunk has the whole text so far, so it keeps the escaped text."""

    def __init__(self, prompt: str) -> None:
        self._escaped = _escape(prompt)

    def render_delta(self, delta: Delta) -> bytes:
        """Return the chunk for a delta. There is none if the delta has neither text nor a finish reason."""
        if not delta.text and not delta.finish_reason:
            return b""
        self._escaped += _escape(delta.text)
        return b'{"text":"%b","error_code":0}\0' % self._escaped


async def render_error(error: GatewayError, response: ResponseWriter) -> None:
    """Write an error: as a response of one chunk, or as the last chunk of a stream that has started."""
    chunk = error_body(error)
    if response.started:
        await response.frames(chunk)
        await response.end()
        return
    await response.body(error.status, chunk, MEDIA_TYPE, retry_after(error))


def error_body(error: GatewayError) -> bytes:
    """Return an error as a chunk. The dialect has no field for `param`, so the text names it."""
    return orjson.dumps({"text": error.message_with_param, "error_code": _error_code(error)}) + NUL


def _error_code(error: GatewayError) -> int:
    if isinstance(error, NotFound):
        return NO_WORKER
    return UNREACHABLE if isinstance(error, Unavailable) else WORKER_ERROR


def _escape(text: str) -> bytes:
    """Return the text as it appears between the quotes of a JSON string."""
    return orjson.dumps(text)[1:-1]
