"""LLaVA's own serving stack, its controller and its model worker in one: LLaVA's web server and `test_message` ask here as they ask those.

An answer is a stream of chunks, each a JSON object and a NUL: `{"text": ..., "error_code": 0}`, where the text is the prompt and all of the
answer so far. An error is one chunk, too, whose text says what is wrong.
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

from llava_gateway.api.base import Api
from llava_gateway.api.schema import TAG, ImageString, Refused, RequestBody
from llava_gateway.errors import GatewayError, InvalidRequest, NotFound, Unavailable
from llava_gateway.http.endpoints import JsonEndpoint
from llava_gateway.http.request_body import JsonBody, RequestBodyReader
from llava_gateway.http.response import ResponseWriter, retry_after
from llava_gateway.serving.gateway import Gateway
from llava_gateway.types import CompletionRequest, Delta, ImageBase64, SamplingParams

MEDIA_TYPE = b"application/octet-stream"
NUL = b"\0"
"""Ends each chunk; alone it is an empty chunk, which clients skip."""
WORKER_ERROR, NO_WORKER, UNREACHABLE = 1, 2, 3
MAX_NEW_TOKENS = 256
TOP_K = 50
GREEDY = 0.001
"""Temperatures up to this are 0 to LLaVA's worker."""


def _stop_tag(stop: Any) -> str:
    return TAG + "string" if isinstance(stop, str) else TAG + "list"


_StopString = Annotated[str, Field(max_length=10_000)]
_Stop = Annotated[
    Annotated[_StopString, Tag(TAG + "string")] | Annotated[list[_StopString], Field(max_length=4, fail_fast=True), Tag(TAG + "list")],
    Discriminator(_stop_tag),
]


class GenerateRequest(RequestBody):
    """`POST /worker_generate_stream`."""

    model: str | None = Field(None, description="a name that /list_models has; another one is error 2; default: the served model")
    prompt: str = Field(description="it goes to the model as it is, control tokens and all, `<image>` wherever an image goes")
    images: Annotated[list[ImageString], Field(max_length=1024, fail_fast=True)] | None = Field(
        None, description="image files in base64, one for each `<image>` in the prompt; URLs are not fetched"
    )
    temperature: float | None = Field(None, ge=0, le=2, description="0 to 2; up to 0.001 is greedy; default 1")
    top_p: float | None = Field(
        None, ge=0, le=1, description="0 to 1: draw among the likeliest tokens that have this share together; 0 is greedy; default 1"
    )
    top_k: int | None = Field(None, ge=-1, lt=1 << 31, description="draw among the k likeliest tokens; 0 and -1 are off; default 50")
    repetition_penalty: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="over 1 against repetition, taken between 0.01 and 100; default 1"
    )
    max_new_tokens: int | None = Field(None, ge=1, description="most tokens of the answer, as far as the context has room; default 256")
    stop: _Stop | None = Field(
        None, description="a string, or up to four, at which the answer ends, without them; empty ones and mere spaces are left out"
    )

    refused: ClassVar = {
        "logprobs": Refused("chunks hold text alone"),
        "echo": Refused("the text always begins with the prompt", unless=(None, True)),
    }
    ignored: ClassVar = {"stream": "the answer always is one"}


class AddressRequest(RequestBody):
    """`POST /get_worker_address`."""

    model: str = Field(description="a name that /list_models has; the address of another one is empty")


class HeartBeat(RequestBody):
    """`POST /receive_heart_beat`."""

    worker_name: str = Field(description="a worker's address; the only one that exists is this server's")

    ignored: ClassVar = {"queue_length": "this server knows its own"}


def create_api(gateway: Gateway, body_reader: RequestBodyReader) -> Api:
    stack = LlavaWorker(gateway)
    generate = JsonEndpoint(stack.worker_generate_stream, render_error, gateway.admission, body_reader)
    return Api(
        [
            Route("/worker_generate_stream", generate, methods=["POST"]),
            Route("/worker_get_status", stack.worker_get_status, methods=["POST"]),
            Route("/refresh_all_workers", stack.refresh_all_workers, methods=["POST"]),
            Route("/list_models", stack.list_models, methods=["POST"]),
            Route("/register_worker", stack.register_worker, methods=["POST"]),
            Route("/get_worker_address", _Addressed(stack.get_worker_address, gateway, body_reader), methods=["POST"]),
            Route("/receive_heart_beat", _Addressed(stack.receive_heart_beat, gateway, body_reader), methods=["POST"]),
        ],
        render_error,
    )


class LlavaWorker:
    """What controller and worker are asked. Clients call the paths that take a `Request` here without any body."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.keep_alive = gateway.settings.keep_alive

    async def worker_generate_stream(self, body: JsonBody, response: ResponseWriter) -> None:
        asked = GenerateRequest.read(body)
        request = to_completion(asked, self.gateway.model_name)
        async with self.gateway.open(request) as deltas, response.stream(MEDIA_TYPE, self.keep_alive, silence=NUL):
            await response.deltas(deltas, TextSoFar(asked.prompt).push)

    async def worker_get_status(self, request: Request) -> Response:
        """Unavailable while the model loads: another controller then does not take this server for one of its workers."""
        names = self.gateway.models.names()
        for name in names:
            self.gateway.model(name)
        admission = self.gateway.admission
        return _json({"model_names": names, "speed": 1, "queue_length": admission.running + admission.queued})

    async def refresh_all_workers(self, request: Request) -> Response:
        return _json(None)

    async def list_models(self, request: Request) -> Response:
        return _json({"models": self.gateway.models.names()})

    async def register_worker(self, request: Request) -> Response:
        raise InvalidRequest(
            "This server is controller and worker in one, and takes no other workers. Run LLaVA's own controller for several, and register "
            "this server there as one of them."
        )

    async def get_worker_address(self, address: str, body: JsonBody, response: ResponseWriter) -> None:
        asked = AddressRequest.read(body)
        await response.json(200, {"address": address if asked.model in self.gateway.models.names() else ""})

    async def receive_heart_beat(self, address: str, body: JsonBody, response: ResponseWriter) -> None:
        await response.json(200, {"exist": HeartBeat.read(body).worker_name.rstrip("/") == address})


@dataclasses.dataclass(frozen=True)
class _Addressed:
    """A JSON endpoint, as an ASGI app, whose handler is told the address that the client reached this server by."""

    handle: Callable[[str, JsonBody, ResponseWriter], Coroutine[Any, Any, None]]
    gateway: Gateway
    body_reader: RequestBodyReader

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        address = str(Request(scope).base_url).rstrip("/")
        endpoint = JsonEndpoint(partial(self.handle, address), render_error, self.gateway.admission, self.body_reader)
        await endpoint(scope, receive, send)


def to_completion(asked: GenerateRequest, default_model: str) -> CompletionRequest:
    """Return the core's request. Clients ask for the same answer length however long their chat is, so it is lowered to fit the context."""
    temperature = 1.0 if asked.temperature is None else asked.temperature
    stop = (asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop or ())
    return CompletionRequest(
        model=default_model if asked.model is None else asked.model,
        prompt=asked.prompt,
        images=tuple(ImageBase64(image, f"images[{index}]") for index, image in enumerate(asked.images or ())),
        sampling=SamplingParams(
            max_tokens=asked.max_new_tokens or MAX_NEW_TOKENS,
            lower_max_tokens_to_fit=True,
            temperature=0.0 if temperature <= GREEDY or asked.top_p == 0 else temperature,
            top_p=asked.top_p or 1.0,
            top_k=max(TOP_K if asked.top_k is None else asked.top_k, 0),
            repetition_penalty=asked.repetition_penalty or 1.0,
            # The separator of vicuna_v1 that `test_message` sends, a space, would end an answer before its first word.
            stop=tuple(each for each in stop if each.strip(" ")),
            # As LLaVA's worker has it: a separator may be a control token, such as `<|im_end|>`, which stops the answer only if it shows.
            skip_special_tokens=False,
        ),
        stream=True,
    )


class TextSoFar:
    """Chunks of a text that grows. Each holds all of it, so that it is escaped once and copied from then on."""

    def __init__(self, prompt: str) -> None:
        self._escaped = _escape(prompt)

    def push(self, delta: Delta) -> bytes:
        """The chunk that a delta makes: none, while it holds no whole character."""
        if not delta.text and not delta.finish_reason:
            return b""
        self._escaped += _escape(delta.text)
        return b'{"text":"%b","error_code":0}\0' % self._escaped


async def render_error(error: GatewayError, response: ResponseWriter) -> None:
    """An error as a response of one chunk, or as the stream's last chunk if the status line has left."""
    chunk = error_body(error)
    if response.started:
        await response.frames(chunk)
        await response.end()
        return
    await response.body(error.status, chunk, MEDIA_TYPE, retry_after(error))


def error_body(error: GatewayError) -> bytes:
    """A chunk that is an error. The dialect has no place for the name of a field but the text."""
    named = error.param is None or error.param in error.message
    text = error.message if named else f"{error.param}: {error.message}"
    return orjson.dumps({"text": text, "error_code": _error_code(error)}) + NUL


def _error_code(error: GatewayError) -> int:
    if isinstance(error, NotFound):
        return NO_WORKER
    return UNREACHABLE if isinstance(error, Unavailable) else WORKER_ERROR


def _escape(text: str) -> bytes:
    """The text as it stands between the quotes of a JSON string."""
    return orjson.dumps(text)[1:-1]


def _json(value: Any) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")
