"""Anthropic's paths over HTTP, with an engine that says what the test gives it. Answers are validated by Anthropic's SDK."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from anthropic.types import ErrorResponse, MessageTokensCount, RawMessageStreamEvent
from anthropic.types import Message as AnthropicMessage
from helpers.errors import LEAKS
from helpers.in_process import served
from helpers.requests import MODEL
from helpers.scripted_engine import FailingEngine, ScriptedEngine
from pydantic import TypeAdapter

from llava_gateway.api.anthropic.response import PING
from llava_gateway.app import create_app
from llava_gateway.errors import EngineFailed, GatewayError, TooManyRequests, Unavailable
from llava_gateway.settings import Settings
from llava_gateway.types import Delta, Prompt, SamplingParams, Usage

pytestmark = pytest.mark.slow

PATH = "/v1/messages"
COUNT = f"{PATH}/count_tokens"
HELLO: dict[str, Any] = {"model": MODEL, "max_tokens": 50, "messages": [{"role": "user", "content": "Hello"}]}
TOOLS = [{"name": "show", "description": "Show a place", "input_schema": {"type": "object", "properties": {"at": {"enum": ["top"]}}}}]
EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)


class WaitingEngine(ScriptedEngine):
    """Says its script once it is released."""

    def __init__(self, *script: str) -> None:
        super().__init__(*script)
        self.released = asyncio.Event()

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
        await self.released.wait()
        await super().generate(prompt, sampling, stream=stream, usage=usage, on_delta=on_delta)


def events(stream: str) -> list[dict[str, Any]]:
    """Return the events of a stream, valid against the SDK's types."""
    *frames, rest = stream.split("\n\n")
    assert not rest
    found = [json.loads(frame.partition("data: ")[2]) for frame in frames]
    for event in found:
        if event["type"] != "ping":
            EVENT.validate_python(event)
    return found


def refused(answer: Any, status: int, kind: str, part: str = "") -> None:
    """Check an error's status, type, id, and a part of its message."""
    assert answer.status_code == status, answer.text
    assert not LEAKS.search(answer.text)
    body = answer.json()
    assert body == {
        "type": "error",
        "error": {"type": kind, "message": body["error"]["message"]},
        "request_id": answer.headers["request-id"],
    }
    if kind != "request_too_large":  # the API has this type, and the SDK's types lack it
        ErrorResponse.model_validate(body)
    assert part in body["error"]["message"]
    assert answer.headers["x-request-id"] == answer.headers["request-id"]


def test_answer_is_a_message_of_the_sdk() -> None:
    with served(ScriptedEngine("Hel", "lo!")) as client:
        answer = client.post(PATH, json=HELLO, headers={"x-request-id": "mine", "anthropic-version": "2023-06-01", "anthropic-beta": "x"})
        message = AnthropicMessage.model_validate(answer.json())
        assert [block.model_dump(exclude_none=True) for block in message.content] == [{"type": "text", "text": "Hello!"}]
        assert (message.model, message.stop_reason, message.usage.output_tokens) == (MODEL, "end_turn", 2)
        assert message.id.startswith("msg_")
        assert answer.headers["request-id"] == "mine"
        count = MessageTokensCount.model_validate(client.post(COUNT, json=HELLO).json())
        assert count.input_tokens == message.usage.input_tokens


def test_stream_is_a_sequence_of_the_sdks_events() -> None:
    with served(ScriptedEngine("Hel", "lo!")) as client:
        answer = client.post(PATH, json=HELLO | {"stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["request-id"]
    first, ping, start, *deltas, stop, end, last = events(answer.text)
    types = [event["type"] for event in (first, ping, start, stop, end, last)]
    assert types == ["message_start", "ping", "content_block_start", "content_block_stop", "message_delta", "message_stop"]
    assert "".join(event["delta"]["text"] for event in deltas) == "Hello!"
    assert end["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}


def test_silent_stream_gets_pings() -> None:
    engine, body = WaitingEngine("Hello"), json.dumps(HELLO | {"stream": True}).encode()
    sent: list[bytes] = []
    requests = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        return requests.pop() if requests else await asyncio.Future()

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))
        if sent.count(PING) >= 2:
            engine.released.set()

    async def ask() -> None:
        app = create_app(Settings(model=MODEL, keep_alive=0.1), engine=lambda: engine)
        await app.state.gateway.start()
        scope = {"type": "http", "method": "POST", "path": PATH, "headers": [(b"host", b"127.0.0.1")], "query_string": b""}
        async with asyncio.timeout(60):
            await app(scope, receive, send)
        await app.state.gateway.stop()

    asyncio.run(ask())
    first, *_, last = [event["type"] for event in events(b"".join(sent).decode())]
    assert (first, last) == ("ping", "message_stop")


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "show"}])
def test_required_call_is_a_tool_use_block(choice: dict[str, Any]) -> None:
    with served(ScriptedEngine()) as client:
        asked = HELLO | {"tools": TOOLS, "tool_choice": choice | {"disable_parallel_tool_use": True}}
        message = AnthropicMessage.model_validate(client.post(PATH, json=asked).json())
        streamed = events(client.post(PATH, json=asked | {"stream": True}).text)
    (block,) = message.content
    assert block.type == "tool_use"
    assert block.name == "show"
    assert block.id.startswith("toolu_")
    assert message.stop_reason == "tool_use"
    assert "".join(event["delta"]["partial_json"] for event in streamed if event["type"] == "content_block_delta") == json.dumps(
        block.input, separators=(",", ":")
    )


@pytest.mark.parametrize("stream", [False, True])
def test_tools_that_are_ignored_are_said_in_a_header(stream: bool) -> None:
    with served(ScriptedEngine("Hello")) as client:
        answer = client.post(PATH, json=HELLO | {"tools": TOOLS, "stream": stream})
        assert answer.headers["x-llava-tools"] == "ignored"
        assert client.post(COUNT, json=HELLO | {"tools": TOOLS}).json() == client.post(COUNT, json=HELLO).json()
        required = {"tools": TOOLS, "tool_choice": {"type": "any"}}
        assert "x-llava-tools" not in client.post(PATH, json=HELLO | required).headers
        assert client.post(COUNT, json=HELLO | required).json() != client.post(COUNT, json=HELLO).json()


def test_request_without_a_model_gets_the_only_one() -> None:
    with served(ScriptedEngine("Hello")) as client:
        assert client.post(PATH, json=HELLO | {"model": None}).json()["model"] == MODEL
        assert client.post(COUNT, json=HELLO | {"model": ""}).status_code == 200


def test_error_has_anthropics_shape_on_every_path() -> None:
    with served(ScriptedEngine("Hello")) as client:
        for path in (PATH, COUNT):
            refused(client.post(path, json=HELLO | {"model": "other"}), 404, "not_found_error", "other")
            refused(client.post(path, json=HELLO | {"messages": [{"role": "user"}]}), 400, "invalid_request_error", "messages[0].content")
            refused(client.post(path, content="{"), 400, "invalid_request_error")
            refused(client.post(path, content="x", headers={"content-type": "text/plain"}), 415, "invalid_request_error")
            refused(client.get(path), 405, "invalid_request_error")
            refused(client.post(path, json=HELLO, headers={"origin": "http://evil.example"}), 403, "permission_error")
        refused(client.post(f"{PATH}/batches", json={}), 404, "not_found_error")
        assert set(client.post("/v1/messages_of_others").json()["error"]) == {"message", "type", "param", "code"}
    with served(ScriptedEngine("Hello"), max_body_mb=1) as client:
        refused(client.post(PATH, json=HELLO | {"metadata": "x" * (1 << 20)}), 413, "request_too_large")


def test_prompt_that_is_too_long_has_anthropics_words() -> None:
    with served(ScriptedEngine("Hello")) as client:
        long = HELLO | {"messages": [{"role": "user", "content": "word " * 70_000}]}
        refused(client.post(PATH, json=long), 400, "invalid_request_error", "prompt is too long: This model's maximum context length")


def test_key_is_taken_from_x_api_key_and_refused_in_anthropics_shape() -> None:
    with served(ScriptedEngine("Hello"), api_keys=("secret",)) as client:
        assert client.post(PATH, json=HELLO, headers={"x-api-key": "secret"}).status_code == 200
        for path in (PATH, COUNT, f"{PATH}/batches"):
            refused(client.post(path, json=HELLO, headers={"x-api-key": "wrong"}), 401, "authentication_error")


@pytest.mark.parametrize(
    ("error", "kind", "headers"),
    [
        (TooManyRequests("Try later.", code="queue_full", retry_after=3), "rate_limit_error", {"retry-after": "3"}),
        (Unavailable("The engine restarts.", retry_after=5), "overloaded_error", {"retry-after": "5"}),
        (EngineFailed("The engine failed."), "api_error", {"x-should-retry": "false"}),
    ],
)
def test_error_of_the_engine_says_whether_to_retry(error: GatewayError, kind: str, headers: dict[str, str]) -> None:
    with served(FailingEngine(error)) as client:
        for stream in (False, True):
            answer = client.post(PATH, json=HELLO | {"stream": stream})
            refused(answer, error.status, kind, error.message)
            assert headers.items() <= dict(answer.headers).items()


def test_error_within_a_stream_is_its_last_event() -> None:
    with served(FailingEngine(EngineFailed("The engine failed."), "Hel")) as client:
        text = client.post(PATH, json=HELLO | {"stream": True}).text
    frames = text.split("\n\n")[:-1]
    assert frames[0].startswith("event: message_start\n")
    name, data = frames[-1].split("\n")
    assert name == "event: error"
    error = ErrorResponse.model_validate(json.loads(data.removeprefix("data: ")))
    assert (error.error.type, error.error.message) == ("api_error", "The engine failed.")
    assert "message_stop" not in text
