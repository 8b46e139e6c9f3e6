"""Tools over HTTP, with an engine that says what the test gives it."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from helpers.contract import check_stream, frames
from helpers.requests import MODEL
from helpers.scripted_engine import CALL, RENDERS_TOOLS, SCHEMA, ScriptedEngine

from llava_gateway.app import create_app
from llava_gateway.settings import Settings

CHAT = "/v1/chat/completions"
TOOLS = [{"type": "function", "function": {"name": "show", "description": "Show a place", "parameters": SCHEMA}}]


def run(engine: ScriptedEngine, work: Callable[[httpx.AsyncClient], Awaitable[None]], **settings: Any) -> None:
    """Do the work with a client of a gateway in front of the engine."""

    async def main() -> None:
        app = create_app(Settings(model=MODEL, **settings), engine=lambda: engine)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8000") as client,
            asyncio.timeout(60),
        ):
            while (await client.get("/ready")).status_code != 200:  # noqa: ASYNC110  # the server has no other sign
                await asyncio.sleep(0.01)
            await work(client)

    asyncio.run(main())


def ask(engine: ScriptedEngine, settings: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """Return the first choice of a whole answer, after a check that the streamed answer is equal but for the ids of calls."""
    choices: list[dict[str, Any]] = []
    asked = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "tools": TOOLS, "temperature": 0} | fields

    async def work(client: httpx.AsyncClient) -> None:
        whole = await client.post(CHAT, json=asked)
        assert whole.status_code == 200, whole.text
        stream = await client.post(CHAT, json=asked | {"stream": True})
        check_stream(CHAT, stream.text)
        choices.extend((whole.json()["choices"][0], joined(stream.text)))

    run(engine, work, **(settings or {}))
    whole, stream = choices
    assert [call.pop("id")[:5] for choice in choices for call in choice["message"].get("tool_calls", ())].count("call_") % 2 == 0
    assert stream["message"] == {key: value for key, value in whole["message"].items() if key != "refusal"}
    assert stream["finish_reason"] == whole["finish_reason"]
    return whole


def joined(stream: str) -> dict[str, Any]:
    """Return the choice of a stream in the form of a whole answer."""
    content, calls, reason = "", list[dict[str, Any]](), None
    *events, _ = frames(stream)
    for (choice,) in (json.loads(event)["choices"] for event in events):
        content += choice["delta"].get("content") or ""
        reason = choice["finish_reason"] or reason
        for call in choice["delta"].get("tool_calls", ()):
            if call.pop("index") == len(calls):
                assert call["function"]["arguments"] == ""
                calls.append(call)
            else:
                calls[-1]["function"]["arguments"] += call["function"]["arguments"]
    message: dict[str, Any] = {"role": "assistant", "content": content or None}
    if calls:
        message["tool_calls"] = calls
    return {"message": message, "finish_reason": reason}


def calls_of(choice: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in choice["message"].get("tool_calls", ())]


def template(folder: Path) -> dict[str, Any]:
    """Return settings with a chat template that renders tools."""
    path = folder / "template.jinja"
    path.write_text(RENDERS_TOOLS)
    return {"template": str(path)}


@pytest.mark.parametrize("pieces", [[CALL], list(CALL), ["Let me look. ", *CALL]])
def test_call_is_parsed_from_the_answer_of_a_model_that_knows_tools(tmp_path: Path, pieces: list[str]) -> None:
    engine = ScriptedEngine(*pieces)
    choice = ask(engine, template(tmp_path))
    assert calls_of(choice) == [("show", {"at": "top"})]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == ("Let me look. " if len(pieces) > len(CALL) else None)
    assert engine.sampling
    assert engine.sampling.structured_output is None


def test_text_of_a_model_that_knows_tools_stays_text(tmp_path: Path) -> None:
    choice = ask(ScriptedEngine(" A <tool", " is ", "no call"), template(tmp_path))
    assert choice["message"]["content"] == "A <tool is no call"
    assert choice["finish_reason"] == "stop"


def test_other_form_of_calls_is_parsed_by_its_name(tmp_path: Path) -> None:
    script = '{"name": "show", "parameters": {"at": "top"}}'
    assert calls_of(ask(ScriptedEngine(script), template(tmp_path) | {"tool_call_parser": "llama3_json"})) == [("show", {"at": "top"})]
    assert calls_of(ask(ScriptedEngine(script), template(tmp_path))) == []


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "show"}}])
def test_grammar_holds_a_call_and_the_definitions_are_in_the_prompt(choice: Any) -> None:
    engine = ScriptedEngine("not a call")
    answer = ask(engine, tool_choice=choice)
    assert all(name == "show" and arguments["at"] in ("top", "bottom") for name, arguments in calls_of(answer))
    assert answer["finish_reason"] == ("tool_calls" if choice == "required" else "stop")
    assert answer["message"]["content"] is None


def test_tools_are_left_out_by_default_and_the_header_says_so() -> None:
    engine = ScriptedEngine("Hello", " there")

    async def work(client: httpx.AsyncClient) -> None:
        asked = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}
        for fields in ({}, {"stream": True}):
            with_tools = await client.post(CHAT, json=asked | {"tools": TOOLS} | fields)
            assert with_tools.headers["x-llava-tools"] == "ignored"
            assert "x-llava-tools" not in (await client.post(CHAT, json=asked | {"tools": TOOLS, "tool_choice": "none"} | fields)).headers
            assert (
                "x-llava-tools" not in (await client.post(CHAT, json=asked | {"tools": TOOLS, "tool_choice": "required"} | fields)).headers
            )

    run(engine, work)
    assert ask(engine)["message"]["content"] == "Hello there"


@pytest.mark.parametrize("fields", [{}, {"response_format": {"type": "json_object"}}])
def test_prompt_mode_holds_the_answer_to_text_or_calls(fields: dict[str, Any]) -> None:
    engine = ScriptedEngine("unused")
    ask(engine, {"tools_auto": "prompt"}, **fields)
    assert engine.sampling
    assert engine.sampling.structured_output
    assert engine.sampling.structured_output.kind == "grammar"


@pytest.mark.parametrize("mode", ["answer", "prompt"])
@pytest.mark.parametrize("fields", [{}, {"tool_choice": "required"}, {"tool_choice": "none"}])
def test_tokenize_counts_the_tokens_of_tools(mode: str, fields: dict[str, Any]) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        asked = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "tools": TOOLS} | fields
        usage = (await client.post(CHAT, json=asked)).json()["usage"]
        assert (await client.post("/tokenize", json=asked)).json()["count"] == usage["prompt_tokens"]

    run(ScriptedEngine("Hello"), work, tools_auto=mode)


def test_older_form_is_streamed_in_the_older_form(tmp_path: Path) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        asked = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "functions": [TOOLS[0]["function"]]}
        whole = (await client.post(CHAT, json=asked)).json()["choices"][0]
        assert whole["message"]["function_call"] == {"name": "show", "arguments": '{"at": "top"}'}
        assert whole["finish_reason"] == "function_call"
        *events, _ = frames((await client.post(CHAT, json=asked | {"stream": True})).text)
        choices = [json.loads(event)["choices"][0] for event in events]
        calls = [choice["delta"]["function_call"] for choice in choices if "function_call" in choice["delta"]]
        assert calls[0] == {"name": "show", "arguments": ""}
        assert "".join(call["arguments"] for call in calls) == '{"at": "top"}'
        assert choices[-1]["finish_reason"] == "function_call"

    run(ScriptedEngine(*CALL), work, **template(tmp_path))


def test_structured_output_with_tools_is_refused_where_the_model_writes_calls_itself(tmp_path: Path) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        asked = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "tools": TOOLS}
        refusal = await client.post(CHAT, json=asked | {"response_format": {"type": "json_object"}})
        assert refusal.status_code == 400
        assert refusal.json()["error"]["param"] == "response_format"

    run(ScriptedEngine("x"), work, **template(tmp_path))
