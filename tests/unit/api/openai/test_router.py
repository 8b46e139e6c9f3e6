"""Requests over HTTP to a gateway whose engine answers at once: the model's default name, /v1/models, paths, keys, the context."""

import asyncio
import dataclasses
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from helpers.errors import refused
from helpers.in_process import client_of
from helpers.requests import MODEL, image_part, user
from helpers.silent_engine import SilentEngine

from llava_gateway.auth.api_keys import Key, KeyFile, digest
from llava_gateway.engine.supervisor import Supervisor
from llava_gateway.model_info import LoraAdapter, ModelInfo
from llava_gateway.serving.gateway import Gateway
from llava_gateway.serving.model_registry import ServedModel
from llava_gateway.settings import Settings
from llava_gateway.types import Delta, Prompt, SamplingParams, Usage

CHAT = "/v1/chat/completions"
CONTEXT = 100
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}]}
ADAPTER = LoraAdapter("corner", "/adapters/corner", 1)


class AnsweringEngine(SilentEngine):
    """An engine that answers each request with its `max_tokens`."""

    async def start(self) -> ModelInfo:
        return dataclasses.replace(await super().start(), context_length=CONTEXT)

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
        usage.prompt_tokens, usage.completion_tokens = len(prompt.token_ids), 1
        on_delta(Delta(0, str(sampling.max_tokens), 1, "stop"))


@asynccontextmanager
async def served(*names: str, adapters: tuple[LoraAdapter, ...] = (), **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client of a gateway that serves models with these names."""
    given = Settings(model=MODEL, **settings)
    models = [ServedModel(name, Supervisor(AnsweringEngine, 10, None, adapters), root=f"hub/{name}") for name in names]
    gateway = Gateway(given, models)
    async with client_of(gateway) as http:
        yield http


def post(path: str, body: dict[str, Any], *names: str, headers: dict[str, str] | None = None, **options: Any) -> httpx.Response:
    """Return the response to one request."""

    async def ask() -> httpx.Response:
        async with served(*(names or (MODEL,)), **options) as http:
            return await http.post(path, json=body, headers=headers)

    return asyncio.run(ask())


@pytest.mark.parametrize("named", [{}, {"model": None}, {"model": ""}], ids=str)
@pytest.mark.parametrize(("path", "body"), [(CHAT, HELLO), ("/v1/completions", {"prompt": "Hello"}), ("/tokenize", {"prompt": "Hello"})])
def test_request_without_a_model_gets_the_only_one(path: str, body: dict[str, Any], named: dict[str, Any]) -> None:
    answer = post(path, body | named, model_alias=("another-name",))
    assert answer.status_code == 200
    assert answer.json().get("model", MODEL) == MODEL


def test_request_without_a_model_is_refused_with_the_names_if_there_are_several() -> None:
    for answer in (post(CHAT, HELLO, MODEL, "other"), post(CHAT, HELLO, adapters=(ADAPTER,))):
        assert repr(MODEL) in refused(answer, 400, "model")["message"]
    refused(post(CHAT, HELLO | {"model": "third"}, MODEL, "other"), 404, "model", "model_not_found")


def test_models_have_root_and_context_length() -> None:
    async def listed() -> Any:
        async with served(MODEL, adapters=(ADAPTER,)) as http:
            return (await http.get("/v1/models/")).json()["data"]

    model, adapter = asyncio.run(listed())
    assert (model["root"], model["max_model_len"]) == (f"hub/{MODEL}", CONTEXT)
    assert "parent" not in model
    assert (adapter["root"], adapter["max_model_len"], adapter["parent"]) == (f"hub/{MODEL}", CONTEXT, MODEL)
    assert "/adapters" not in str(adapter)


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/tokenize", "/detokenize", "/api/v1/token-count", "/worker_generate_stream"])
def test_trailing_slash_does_not_lose_the_body(path: str) -> None:
    body = HELLO if path == CHAT else {"tokens": [1]} if path == "/detokenize" else {"prompt": "Hello"}
    answer = post(path + "/", body)
    assert answer.status_code == 200, answer.text
    assert answer.content


def test_trailing_slash_needs_a_key_like_the_path_without_it() -> None:
    assert post(CHAT + "/", HELLO, api_keys=("secret",)).status_code == 401
    answer = post("/api/v1/token-count/", {"prompt": "Hello"}, api_keys=("secret",))
    assert set(answer.json()["error"]) == {"message", "param", "code"}  # in the API's own shape


@pytest.mark.parametrize("header", ["x-api-key", "api-key", "key"])
def test_key_is_taken_from_the_headers_of_other_clients(header: str) -> None:
    assert post(CHAT, HELLO, api_keys=("secret",), headers={header: "secret"}).status_code == 200
    assert post(CHAT, HELLO, api_keys=("secret",), headers={header: "wrong"}).status_code == 401
    assert post(CHAT, HELLO, api_keys=("secret",), headers={"authorization": "Basic eA==", header: "secret"}).status_code == 200


def test_authorization_header_wins_over_other_headers() -> None:
    assert post(CHAT, HELLO, api_keys=("secret",), headers={"authorization": "Bearer wrong", "x-api-key": "secret"}).status_code == 401


@pytest.mark.parametrize(("path", "body"), [(CHAT, HELLO), ("/v1/completions", {"prompt": "Hello"})])
def test_max_tokens_beyond_the_rest_of_the_context_is_lowered(path: str, body: dict[str, Any]) -> None:
    answer = post(path, body | {"max_tokens": 10**6}).json()
    choice = answer["choices"][0]
    length = int(choice["text"] if "text" in choice else choice["message"]["content"])
    assert length == CONTEXT - answer["usage"]["prompt_tokens"]


def test_lowered_max_tokens_is_reserved_at_the_keys_limit(tmp_path: Path) -> None:
    """A stream's header has the tokens that are left after its reservation."""
    file = KeyFile(tmp_path / "keys.json")
    file.add(Key("mine", digest("mine"), tokens_per_minute=1000))
    body = HELLO | {"max_tokens": 10**6, "stream": True}
    answer = post(CHAT, body, keys_file=str(file.path), headers={"x-api-key": "mine"})
    assert answer.headers["x-ratelimit-remaining-tokens"] == str(1000 - CONTEXT)


def words(number: int) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "word " * number}]}


@pytest.mark.parametrize(
    ("path", "body", "excess"),
    [
        (CHAT, words(100), r"you requested (\d+) tokens \(\d+ in the messages, 1 in the completion\)"),
        (CHAT, HELLO | {"min_tokens": 99}, r"you requested (\d+) tokens \(\d+ in the messages, 99 in the completion\)"),
        (CHAT, words(9000), r"your text of (\d+) characters resulted in more tokens than that"),
        (CHAT, {"messages": [user(*[image_part("http://192.0.2.1/")] * 100)]}, r"your messages resulted in (\d+) tokens"),
        ("/v1/completions", {"prompt": [5] * 100}, r"you requested (101) tokens \(100 in the prompt, 1 in the completion\)"),
        ("/v1/completions", {"prompt": [5] * 101}, r"your prompt resulted in (101) tokens"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_context_error_has_openais_sentence(path: str, body: dict[str, Any], excess: str) -> None:
    """Clients recognise the error by this sentence, and some read its numbers."""
    message = refused(post(path, body), 400, "messages" if path == CHAT else "prompt", "context_length_exceeded")["message"]
    beginning = rf"This model's maximum context length is {CONTEXT} tokens\. However, {excess}\. Please reduce the length of the "
    found = re.match(beginning, message)
    assert found, message
    assert int(found[1]) >= CONTEXT


@pytest.mark.parametrize(("headers", "accepted"), [({"x-api-key": "secret"}, True), ({"api-key": "secret"}, True), ({}, False)], ids=str)
def test_websocket_takes_the_same_headers_and_paths(headers: dict[str, str], accepted: bool) -> None:
    async def connect() -> list[Any]:
        sent: list[Any] = []
        received = [{"type": "websocket.connect"}, {"type": "websocket.disconnect", "code": 1000}]
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]

        async def receive() -> Any:
            return received.pop(0)

        async def send(message: Any) -> None:
            sent.append(message["type"])

        async with served(MODEL, api_keys=("secret",)) as http:
            transport: Any = http._transport
            scope = {"type": "websocket", "path": "/api/v1/stream/", "headers": raw, "client": ("127.0.0.1", 1), "query_string": b""}
            await transport.app(scope, receive, send)
        return sent

    assert asyncio.run(connect()) == ["websocket.accept" if accepted else "websocket.close"]
