"""Requests, chunks and errors of LLaVA's worker API."""

import asyncio
import json
import re
from typing import Any

import httpx
import pytest
from helpers.documentation import rows
from helpers.llava_worker import GENERATE, chunks, refused, request
from helpers.requests import MODEL
from helpers.server import ROOT
from hypothesis import given
from hypothesis import strategies as st
from starlette.routing import Route
from starlette.types import Message

from llava_gateway.api.llava_worker.router import AddressRequest, ChunkRenderer, GenerateRequest, HeartBeat, render_error, to_completion
from llava_gateway.app import create_app
from llava_gateway.errors import EngineFailed, InvalidRequest, RequestTimeout, Unavailable
from llava_gateway.http.response import ResponseWriter
from llava_gateway.settings import Settings
from llava_gateway.types import Delta

DOCS = (ROOT / "docs" / "llava-worker.md").read_text()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {"temperature": 1.0, "top_p": 1.0, "top_k": 50, "repetition_penalty": 1.0, "stop": ()}),
        ({"temperature": 0.7, "top_p": 0.9, "top_k": 5, "repetition_penalty": 1.1}, None),
        ({"temperature": 0}, {"temperature": 0.0}),
        ({"temperature": 0.0011}, None),
        ({"top_k": -1}, {"top_k": 0}),
        ({"stop": ["a", " ", "b "]}, {"stop": ("a", "b ")}),
    ],
    ids=str,
)
def test_fields_become_sampling_params(fields: dict[str, Any], expected: dict[str, Any] | None) -> None:
    sampling = to_completion(GenerateRequest.parse({"prompt": "x"} | fields), MODEL).sampling
    for name, value in (expected or fields).items():
        assert getattr(sampling, name) == value


@given(st.lists(st.text(st.characters(codec="utf-8")), min_size=1))
def test_every_chunk_is_json_with_one_nul_at_its_end(pieces: list[str]) -> None:
    prompt, *deltas = pieces
    text = ChunkRenderer(prompt)
    for number, delta in enumerate(deltas, 2):
        chunk = text.render_delta(Delta(0, delta, 1, "stop"))
        assert chunk.index(b"\0") == len(chunk) - 1
        assert json.loads(chunk[:-1]) == {"text": "".join(pieces[:number]), "error_code": 0}


_json = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner, max_size=3))


@given(st.dictionaries(st.sampled_from(sorted(GenerateRequest.model_fields | GenerateRequest.refused)), _json))
def test_any_body_is_parsed_or_refused_by_name(content: dict[str, Any]) -> None:
    try:
        request = to_completion(GenerateRequest.parse(content), MODEL)
    except InvalidRequest as error:
        assert error.param
        assert error.param in error.message
    else:
        assert request.prompt == content["prompt"]
        assert 0 <= request.sampling.temperature <= 2
        assert 0 < request.sampling.top_p <= 1


def test_loading_model_is_reported_as_an_unreachable_worker() -> None:
    """A controller that uses this server as a worker gets the same error."""

    async def ask() -> list[httpx.Response]:
        app = create_app(Settings(model=MODEL), engine=lambda: pytest.fail("the test starts no engine"))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
            return [await client.post(GENERATE, json=request()), await client.post("/worker_get_status"), await client.post("/list_models")]

    generate, status, models = asyncio.run(ask())
    refused(generate, 503, 3, "loading")
    assert generate.headers["retry-after"] == "3"
    refused(status, 503, 3, "loading")
    assert models.json() == {"models": [MODEL]}


@pytest.mark.parametrize(
    ("error", "error_code"),
    [(EngineFailed("It failed."), 1), (RequestTimeout("It took too long."), 1), (Unavailable("It stops."), 3)],
    ids=str,
)
def test_error_after_the_start_of_a_stream_is_its_last_chunk(error: Any, error_code: int) -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(render_error(error, ResponseWriter(send, started=True)))
    assert [message["type"] for message in sent] == ["http.response.body"] * 2
    assert [message.get("more_body", False) for message in sent] == [True, False]
    (chunk,) = chunks(message["body"] for message in sent)
    assert chunk == {"text": error.message, "error_code": error_code}


@pytest.mark.parametrize("model", [GenerateRequest, AddressRequest, HeartBeat])
def test_documentation_describes_every_field(model: Any) -> None:
    for row in rows(model):
        assert row in DOCS, row


def test_documentation_names_no_removed_field() -> None:
    named = set(re.findall(r"^\| `([a-z_]+)` \| (?:honoured|ignored|refused) \|", DOCS, re.MULTILINE))
    assert named == {row.split("`")[1] for model in (GenerateRequest, AddressRequest, HeartBeat) for row in rows(model)}


def test_documentation_names_every_path() -> None:
    app = create_app(Settings(model=MODEL, apis=("llava_worker",)), engine=lambda: pytest.fail("the test starts no engine"))
    paths = {route.path for route in app.routes if isinstance(route, Route)} - {"/health", "/ready", "/metrics", "/openapi.json", "/docs"}
    assert {path for path in paths if f"`POST {path}`" not in DOCS} == set()
