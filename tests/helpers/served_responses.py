"""A gateway that answers `/v1/responses` over HTTP, with an engine that says what the test gives it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
from helpers.errors import refused
from helpers.in_process import client_of
from helpers.requests import MODEL
from helpers.responses import check_event_stream, check_response, without_ids
from helpers.scripted_engine import SCHEMA, ScriptedEngine

from llava_gateway.demo.images import data_uri, draw, encode
from llava_gateway.engine.supervisor import Supervisor
from llava_gateway.errors import EngineFailed
from llava_gateway.serving.gateway import Gateway
from llava_gateway.serving.model_registry import ServedModel
from llava_gateway.settings import Settings
from llava_gateway.types import Delta, Prompt, SamplingParams, TokenLogprob, Usage

PATH = "/v1/responses"
FILE = encode(draw(("red", "blue", "green", "orange")))
PNG = data_uri(FILE)
TOOLS = [{"type": "function", "name": "show", "description": "Show a place", "parameters": SCHEMA}]


class RecordingEngine(ScriptedEngine):
    """Says its script, and keeps the prompts."""

    def __init__(self, *script: str, reason: str = "stop") -> None:
        super().__init__(*script)
        self.prompts: list[str] = []
        self.images = 0
        self.reason: Any = reason

    async def generate(
        self,
        prompt: Prompt,
        sampling: SamplingParams,
        *,
        stream: bool,
        usage: Usage,
        on_delta: Callable[[Delta], None],
        on_text: Callable[[str, int], None] | None = None,
    ) -> None:
        self.prompts.append((await self.start()).tokenizer.decode(prompt.token_ids))
        self.images = len(prompt.images)

        def deliver(delta: Delta) -> None:
            pieces = ([delta.text] if stream else self.script) if sampling.logprobs is not None and delta.tokens else ()
            logprobs = tuple(TokenLogprob(piece.encode(), -0.5, ((piece.encode(), -0.5),)) for piece in pieces)
            on_delta(Delta(delta.index, delta.text, delta.tokens, delta.finish_reason and self.reason, logprobs=logprobs))

        await super().generate(prompt, sampling, stream=stream, usage=usage, on_delta=deliver)


class FailingEngine(RecordingEngine):
    async def generate(
        self,
        prompt: Prompt,
        sampling: SamplingParams,
        *,
        stream: bool,
        usage: Usage,
        on_delta: Callable[[Delta], None],
        on_text: Callable[[str, int], None] | None = None,
    ) -> None:
        on_delta(Delta(0, "Hel", 1))
        raise EngineFailed("The engine failed on this request.", code="engine_error")


class WaitingEngine(RecordingEngine):
    """Begins an answer, and ends it only if `answers` is set."""

    def __init__(self) -> None:
        super().__init__("Hello")
        self.started = asyncio.Event()
        self.answers = False

    async def generate(
        self,
        prompt: Prompt,
        sampling: SamplingParams,
        *,
        stream: bool,
        usage: Usage,
        on_delta: Callable[[Delta], None],
        on_text: Callable[[str, int], None] | None = None,
    ) -> None:
        on_delta(Delta(0, "Hel", 1))
        self.started.set()
        if not self.answers:
            await asyncio.Future()
        on_delta(Delta(0, "lo", 1, "stop"))


@asynccontextmanager
async def served(engine: ScriptedEngine, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client of a gateway in front of the engine."""
    given = Settings(model=MODEL, **options)
    gateway = Gateway(given, [ServedModel(MODEL, Supervisor(lambda: engine, 10, None, ()), given.template)])
    async with client_of(gateway) as http:
        yield http


async def create(http: httpx.AsyncClient, content: Any = "Hello", **fields: Any) -> dict[str, Any]:
    """Return a whole response."""
    answer = await http.post(PATH, json={"input": content, **fields})
    assert answer.status_code == 200, answer.text
    check_response(answer.json())
    response: dict[str, Any] = answer.json()
    return response


async def stream(http: httpx.AsyncClient, content: Any = "Hello", **fields: Any) -> list[dict[str, Any]]:
    """Return the events of a streamed response."""
    answer = await http.post(PATH, json={"input": content, "stream": True, **fields})
    assert answer.status_code == 200, answer.text
    return check_event_stream(answer.text)


def ask(engine: ScriptedEngine, content: Any = "Hello", options: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """Return a whole response, after a check that the streamed one is equal but for its ids."""

    async def run() -> dict[str, Any]:
        async with served(engine, **(options or {})) as http:
            whole = await create(http, content, **fields)
            events = await stream(http, content, **fields)
            assert without_ids(events[-1]["response"]) == without_ids(whole)
            return whole

    return asyncio.run(run())


def refusal(body: dict[str, Any], param: str | None, status: int = 400, code: str | None = None) -> str:
    """Return the message of a refused request."""

    async def run() -> httpx.Response:
        async with served(RecordingEngine("Hello")) as http:
            return await http.post(PATH, json=body)

    return str(refused(asyncio.run(run()), status, param, code)["message"])


def padded(size: int) -> str:
    """Return an image of at least `size` bytes: decoders ignore the bytes after the end of the file."""
    return data_uri(FILE + bytes(size))


def message(role: str, *content: Any) -> dict[str, Any]:
    return {"role": role, "content": list(content)}
