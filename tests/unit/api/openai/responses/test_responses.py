"""`/v1/responses` over HTTP, with an engine that says what the test gives it."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from helpers.errors import refused
from helpers.requests import MODEL
from helpers.responses import check_event_stream, check_item_list, check_response, text_of, without_ids
from helpers.scripted_engine import ScriptedEngine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llava_gateway.api.openai.responses.request import CreateResponse
from llava_gateway.api.openai.responses.store import ResponseStore
from llava_gateway.app import build_app
from llava_gateway.demo.images import data_uri, draw, encode
from llava_gateway.engine.supervisor import Supervisor
from llava_gateway.errors import EngineFailed
from llava_gateway.serving.gateway import Gateway
from llava_gateway.serving.model_registry import ServedModel
from llava_gateway.settings import Settings
from llava_gateway.storage.object_store import MemoryObjectStore
from llava_gateway.types import Delta, Prompt, SamplingParams, TokenLogprob, Usage

PATH = "/v1/responses"
FILE = encode(draw(("red", "blue", "green", "orange")))
PNG = data_uri(FILE)
SCHEMA = {"type": "object", "properties": {"at": {"enum": ["top", "bottom"]}}, "required": ["at"]}
TOOLS = [{"type": "function", "name": "show", "description": "Show a place", "parameters": SCHEMA}]
CALL = '<tool_call>\n{"name": "show", "arguments": {"at": "top"}}\n</tool_call>'


class RecordingEngine(ScriptedEngine):
    """Says its script, and keeps the prompts."""

    def __init__(self, *script: str, reason: str = "stop") -> None:
        super().__init__(*script)
        self.prompts: list[str] = []
        self.images = 0
        self.reason: Any = reason

    async def generate(
        self, prompt: Prompt, sampling: SamplingParams, *, stream: bool, usage: Usage, on_delta: Callable[[Delta], None]
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
        self, prompt: Prompt, sampling: SamplingParams, *, stream: bool, usage: Usage, on_delta: Callable[[Delta], None]
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
        self, prompt: Prompt, sampling: SamplingParams, *, stream: bool, usage: Usage, on_delta: Callable[[Delta], None]
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
    await gateway.start()
    try:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(build_app(gateway)), base_url="http://127.0.0.1") as http:
            yield http
    finally:
        await gateway.stop()


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


def test_whole_and_streamed_response_have_the_same_fields() -> None:
    response = ask(RecordingEngine("Hel", "lo"), metadata={"a": "b"}, user="me", max_output_tokens=7, temperature=0)
    assert text_of(response) == "Hello"
    assert (response["status"], response["model"], response["metadata"], response["user"]) == ("completed", MODEL, {"a": "b"}, "me")
    assert (response["max_output_tokens"], response["temperature"], response["top_p"]) == (7, 0, 1)
    assert response["usage"]["total_tokens"] == response["usage"]["input_tokens"] + 2
    assert response["completed_at"] >= response["created_at"]


def test_answer_that_is_cut_off_is_incomplete() -> None:
    response = ask(RecordingEngine("Hello", reason="length"))
    assert (response["status"], response["output"][0]["status"]) == ("incomplete", "incomplete")
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["completed_at"] is None


def test_empty_answer_is_an_empty_message() -> None:
    response = ask(RecordingEngine())
    assert [item["type"] for item in response["output"]] == ["message"]
    assert text_of(response) == ""


def test_stream_has_openais_events_in_order() -> None:
    async def run() -> list[dict[str, Any]]:
        async with served(RecordingEngine("Hello")) as http:
            return await stream(http)

    assert [event["type"] for event in asyncio.run(run())] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]


def test_stream_that_fails_ends_with_error_and_failed_events() -> None:
    async def run() -> list[dict[str, Any]]:
        async with served(FailingEngine()) as http:
            events = await stream(http)
            assert (await http.get(f"{PATH}/{events[0]['response']['id']}")).status_code == 404
            return events

    *_, error, failed = asyncio.run(run())
    assert (error["type"], error["code"]) == ("error", "engine_error")
    assert (failed["type"], failed["response"]["status"]) == ("response.failed", "failed")
    assert failed["response"]["error"]["code"] == "server_error"


@pytest.mark.parametrize("fields", [{"include": ["message.output_text.logprobs"]}, {"top_logprobs": 1}], ids=str)
def test_log_probabilities_are_those_of_all_tokens(fields: dict[str, Any]) -> None:
    response = ask(RecordingEngine("a", "b", "c"), **fields)
    logprobs = response["output"][0]["content"][0]["logprobs"]
    assert [each["logprob"] for each in logprobs] == [-0.5] * 3
    assert all(each["top_logprobs"] for each in logprobs)
    assert ask(RecordingEngine("a"), include=["reasoning.encrypted_content"])["output"][0]["content"][0]["logprobs"] == []


def test_text_and_call_become_two_items() -> None:
    response = ask(
        RecordingEngine("I look. ", *CALL),
        tools=TOOLS,
        options={"template": RENDERS_TOOLS, "tool_call_parser": "hermes"},
        include=["message.output_text.logprobs"],
    )
    text, call = response["output"]
    assert text["content"][0]["text"] == "I look. "
    assert len(text["content"][0]["logprobs"]) == 1
    assert (call["type"], call["name"], json.loads(call["arguments"])) == ("function_call", "show", {"at": "top"})
    assert call["call_id"] != call["id"]


RENDERS_TOOLS = """\
{%- if tools %}{{ 'SYSTEM: ' + tools | tojson + ' ' }}{% endif -%}
{%- for message in messages -%}
{{ message.role.upper() + ': ' }}{% for part in message.content %}{{ part.text if part.type == 'text' else '<image>' }}{% endfor %}
{%- for call in message.tool_calls %}{{ call.function.arguments.at }}{% endfor %}{{ ' ' }}
{%- endfor -%}
{{ 'ASSISTANT:' }}"""


@pytest.mark.parametrize(
    ("choice", "calls"),
    [
        ("required", True),
        ({"type": "function", "name": "show"}, True),
        ({"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "show"}]}, True),
        ("none", False),
        ("auto", False),
        (None, False),
    ],
    ids=str,
)
def test_tool_choice_decides_whether_the_answer_calls(choice: Any, calls: bool) -> None:
    """The grammar's draw differs between the whole answer and the stream, so only the whole answer is looked at."""

    async def run() -> dict[str, Any]:
        async with served(RecordingEngine("Hello")) as http:
            events = await stream(http, tools=TOOLS, tool_choice=choice, text={"format": {"type": "json_object"}} if calls else None)
            assert {item["type"] for item in events[-1]["response"]["output"]} == {"function_call" if calls else "message"}
            return await create(http, tools=TOOLS, tool_choice=choice)

    response = asyncio.run(run())
    assert {item["type"] for item in response["output"]} == {"function_call" if calls else "message"}
    assert response["tool_choice"] == (choice or "auto")


def test_tools_of_a_model_without_tools_are_ignored_as_in_chats() -> None:
    async def run() -> httpx.Response:
        async with served(RecordingEngine("Hello")) as http:
            return await http.post(PATH, json={"input": "Hello", "tools": TOOLS})

    assert asyncio.run(run()).headers["x-llava-tools"] == "ignored"


def test_json_schema_holds_the_answer() -> None:
    engine = RecordingEngine("Hello")
    text: dict[str, Any] = {"format": {"type": "json_schema", "name": "place", "schema": SCHEMA, "strict": True}, "verbosity": "low"}
    response = ask(engine, text=text)
    assert json.loads(text_of(response))["at"] in ("top", "bottom")
    assert response["text"] == {"format": text["format"] | {"description": None}, "verbosity": "low"}


def test_items_become_the_prompt_of_the_same_chat() -> None:
    """Also the items that a client sends back as it got them."""
    engine = RecordingEngine("Yes")
    items = [
        {"type": "message", **message("developer", {"type": "input_text", "text": "Be brief."})},
        message("user", {"type": "input_image", "image_url": PNG, "detail": "high"}, {"type": "input_text", "text": "Look"}),
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant"}
        | {"content": [{"type": "output_text", "text": "I do.", "annotations": [], "logprobs": []}, {"type": "refusal", "refusal": "No"}]},
        {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "show", "arguments": '{"at":"top"}', "status": "completed"},
        {"type": "function_call_output", "call_id": "call_1", "output": [{"type": "input_text", "text": "done"}]},
        {"role": "user", "content": "Really?"},
    ]
    calls = [{"id": "call_1", "type": "function", "function": {"name": "show", "arguments": '{"at":"top"}'}}]
    chat = [
        {"role": "system", "content": "First."},
        {"role": "system", "content": "Be brief."},
        message("user", {"type": "image_url", "image_url": {"url": PNG}}, {"type": "text", "text": "Look"}),
        message("assistant", {"type": "text", "text": "I do."}, {"type": "refusal", "refusal": "No"}) | {"tool_calls": calls},
        {"role": "tool", "tool_call_id": "call_1", "content": "done"},
        {"role": "user", "content": "Really?"},
    ]

    async def run() -> None:
        async with served(engine) as http:
            await create(http, items, instructions="First.")
            answer = await http.post("/v1/chat/completions", json={"messages": chat})
            assert answer.status_code == 200, answer.text

    asyncio.run(run())
    assert engine.prompts[0] == engine.prompts[1]
    assert engine.images == 1


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"type": "reasoning"}]}, "input"),
        ({"input": ["Hello"]}, "input[0]"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        ({"input": [{"type": "web_search_call", "id": "ws_1"}]}, "input[0]"),
        ({"input": [message("user", {"type": "input_audio"})]}, "input[0].content[0]"),
        ({"input": [message("user", {"type": "input_image", "image_url": 5})]}, "input[0].content[0].image_url"),
        ({"input": [message("user", {"type": "input_image", "image_url": "data:image/png;base64,AAAA"})]}, "input[0].content[0].image_url"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "n"}]}, "input[0].arguments"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].id"),
        ({"input": [{"role": "user", "content": "x"}] * 2049}, "input"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"text": {"format": {"type": "xml"}}}, "text.format"),
        ({"text": {"format": {"type": "json_schema", "schema": {}}}}, "text.format.name"),
        ({"text": {"format": {"type": "json_object"}}, "structured_outputs": {"regex": "a"}}, "structured_outputs"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "show"}}]}, "tools[0].name"),
        ({"tools": [*TOOLS, *TOOLS]}, "tools[1].name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "name": "other"}}, "tool_choice.name"),
        ({"tools": TOOLS, "tool_choice": {"type": "mcp"}}, "tool_choice"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"max_tool_calls": 3}, "max_tool_calls"),
        ({"truncation": "auto"}, "truncation"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"metadata": {str(number): "x" for number in range(17)}}, "metadata"),
        ({"metadata": {"a": "x" * 513}}, "metadata"),
        ({"metadata": {"a": 5}}, "metadata"),
        ({"input": "word " * 70_000}, "input"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_field_is_refused_by_its_name(fields: dict[str, Any], param: str) -> None:
    assert refusal({"input": "Hello"} | fields, param)


def test_fields_that_ask_for_nothing_are_taken() -> None:
    nothing = dict.fromkeys(("instructions", "tools", "store", "text", "conversation", "prompt", "metadata", "include", "max_tool_calls"))
    response = ask(
        RecordingEngine("Hello"),
        **nothing,
        background=False,
        previous_response_id="",
        truncation="disabled",
        reasoning={"effort": "high"},
        service_tier="auto",
        stream_options={"include_obfuscation": False},
        tool_choice="auto",
        response_format={"type": "text"},
    )
    assert (response["store"], response["previous_response_id"]) == (True, None)


def test_conversation_goes_on_from_a_stored_response() -> None:
    """Its instructions do not."""
    engine = RecordingEngine("Blue")

    async def run() -> None:
        async with served(engine) as http:
            image = message("user", {"type": "input_image", "image_url": PNG}, {"type": "input_text", "text": "Which color?"})
            first = await create(http, [image], instructions="Be rude.")
            events = await stream(http, "And now?", previous_response_id=first["id"], instructions="Be nice.")
            second = events[-1]["response"]
            third = await create(http, "And then?", previous_response_id=second["id"])
            assert third["previous_response_id"] == second["id"]
            chat = [
                message("user", {"type": "image_url", "image_url": {"url": PNG}}, {"type": "text", "text": "Which color?"}),
                {"role": "assistant", "content": "Blue"},
                {"role": "user", "content": "And now?"},
                {"role": "assistant", "content": "Blue"},
                {"role": "user", "content": "And then?"},
            ]
            await http.post("/v1/chat/completions", json={"messages": chat})

    asyncio.run(run())
    assert "nice" in engine.prompts[1]
    assert "rude" not in engine.prompts[1]
    assert engine.prompts[2] == engine.prompts[3]
    assert engine.images == 1


def test_uploaded_file_stays_in_the_conversation() -> None:
    engine = RecordingEngine("Blue")

    async def run() -> None:
        async with served(engine) as http:
            file = (await http.post("/v1/files", files={"file": ("a.png", FILE)}, data={"purpose": "vision"})).json()
            first = await create(http, [message("user", {"type": "input_image", "file_id": file["id"], "detail": "auto"})])
            listed = (await http.get(f"{PATH}/{first['id']}/input_items")).json()
            check_item_list(listed)
            assert listed["data"][0]["content"][0]["file_id"] == file["id"]
            await create(http, "And now?", previous_response_id=first["id"])
            assert engine.images == 1
            await http.delete(f"/v1/files/{file['id']}")
            gone = await http.post(PATH, json={"input": "And now?", "previous_response_id": first["id"]})
            refused(gone, 400, "previous_response_id", "image_file_not_found")

    asyncio.run(run())


def test_item_reference_finds_input_and_output_items() -> None:
    engine = RecordingEngine("Blue")

    async def run() -> None:
        async with served(engine) as http:
            first = await create(http, [{"type": "reasoning"}, {"role": "user", "content": "Which color?"}])
            listed = (await http.get(f"{PATH}/{first['id']}/input_items")).json()
            check_item_list(listed)
            references: list[Any] = [{"type": "item_reference", "id": listed["data"][0]["id"]}, {"id": first["output"][0]["id"]}]
            second = await create(http, [*references, {"role": "user", "content": "And now?"}])
            listed = (await http.get(f"{PATH}/{second['id']}/input_items", params={"order": "asc"})).json()
            assert [item["role"] for item in listed["data"]] == ["user", "assistant", "user"]
            await create(http, "And now?", previous_response_id=first["id"])
            beyond = first["output"][0]["id"][:-1] + "9"
            refused(await http.post(PATH, json={"input": [{"id": beyond}]}), 400, "input[0].id", "item_not_found")

    asyncio.run(run())
    assert engine.prompts[1] == engine.prompts[2]


def test_stored_response_is_returned_listed_and_deleted() -> None:
    async def run() -> None:
        async with served(RecordingEngine("Hello")) as http:
            items = [{"role": "user", "content": str(number)} for number in range(3)]
            items.append(message("user", {"type": "input_image", "image_url": PNG}))
            response = await create(http, items)
            path = f"{PATH}/{response['id']}"
            assert (await http.get(path)).json() == response
            refused(await http.get(path, params={"stream": "true"}), 400, "stream")
            refused(await http.post(f"{path}/cancel"), 400, None)
            page = (await http.get(f"{path}/input_items", params={"limit": 2})).json()
            check_item_list(page)
            assert [item["content"][0].get("text") for item in page["data"]] == [None, "2"]
            assert page["data"][0]["content"][0]["image_url"] == PNG
            assert page["has_more"]
            rest = (await http.get(f"{path}/input_items", params={"after": page["last_id"]})).json()
            assert [item["content"][0]["text"] for item in rest["data"]] == ["1", "0"]
            assert not rest["has_more"]
            for name, value in (("limit", "0"), ("limit", "x"), ("order", "up"), ("after", "msg_1")):
                refused(await http.get(f"{path}/input_items", params={name: value}), 400, name)
            assert (await http.delete(path)).json() == {"id": response["id"], "object": "response", "deleted": True}
            for gone in (http.get(path), http.delete(path), http.get(f"{path}/input_items"), http.post(f"{path}/cancel")):
                refused(await gone, 404, None, "response_not_found")
            follow = await http.post(PATH, json={"input": "x", "previous_response_id": response["id"]})
            refused(follow, 400, "previous_response_id", "previous_response_not_found")

    asyncio.run(run())


def test_deepinfra_prefix_sees_the_same_responses() -> None:
    async def run() -> None:
        async with served(RecordingEngine("Hello")) as http:
            response = await create(http)
            assert (await http.get(f"/v1/openai/responses/{response['id']}")).json() == response

    asyncio.run(run())


def test_response_with_store_false_is_not_kept() -> None:
    async def run() -> None:
        async with served(RecordingEngine("Hello")) as http:
            response = await create(http, store=False)
            assert response["store"] is False
            refused(await http.get(f"{PATH}/{response['id']}"), 404, None, "response_not_found")

    asyncio.run(run())


def test_response_that_is_too_large_to_store_is_answered_and_says_so() -> None:
    async def run() -> None:
        async with served(RecordingEngine("Hello"), responses_mb_per_key=1) as http:
            large = [message("user", {"type": "input_image", "image_url": padded(300_000)})]
            response = await create(http, large)
            assert response["store"] is False
            refused(await http.get(f"{PATH}/{response['id']}"), 404, None, "response_not_found")
            events = await stream(http, large)
            assert [event["response"]["store"] for event in events if "response" in event] == [True, True, False]

    asyncio.run(run())


def test_key_does_not_see_the_responses_of_another_key() -> None:
    async def run() -> None:
        async with served(RecordingEngine("Hello"), api_keys=("first", "second")) as http:
            http.headers["authorization"] = "Bearer first"
            response = await create(http)
            http.headers["authorization"] = "Bearer second"
            path = f"{PATH}/{response['id']}"
            for other in (http.get(path), http.delete(path), http.get(f"{path}/input_items"), http.post(f"{path}/cancel")):
                refused(await other, 404, None, "response_not_found")
            follow = await http.post(PATH, json={"input": "x", "previous_response_id": response["id"]})
            refused(follow, 400, "previous_response_id", "previous_response_not_found")
            reference = await http.post(PATH, json={"input": [{"id": response["output"][0]["id"]}]})
            refused(reference, 400, "input[0].id", "item_not_found")
            http.headers["authorization"] = "Bearer first"
            assert (await http.get(path)).json() == response

    asyncio.run(run())


def test_oldest_responses_make_room_for_new_ones() -> None:
    async def run() -> None:
        async with served(RecordingEngine("Hello"), responses_mb_per_key=1) as http:
            image = [message("user", {"type": "input_image", "image_url": padded(60_000)})]
            responses = [await create(http, image) for _ in range(16)]
            found = [(await http.get(f"{PATH}/{response['id']}")).status_code for response in responses]
            assert found == sorted(found, reverse=True)
            assert 8 < found.count(200) < 14

    asyncio.run(run())


def test_ten_thousand_responses_stay_within_their_memory() -> None:
    async def run() -> None:
        objects = MemoryObjectStore("responses", max_bytes=1 << 20, max_bytes_per_owner=1 << 20, ttl=60, evict=True)
        store = ResponseStore(objects, 1 << 16)
        for number in range(10_000):
            assert await store.save(f"resp_{number}", None, [{"id": str(number), "content": "x" * 1000}], b'{"output":[]}')
        kept = await objects.list("")
        assert sum([len(await objects.get("", name) or b"") for name in kept]) <= 1 << 20
        assert kept[0] == "resp_9999"
        assert len(kept) > 400

    asyncio.run(run())


def test_long_chain_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava_gateway.api.openai.responses.store.MAX_RESPONSES", 3)

    async def run() -> None:
        async with served(RecordingEngine("Hello")) as http:
            last = None
            for _ in range(4):
                last = (await create(http, previous_response_id=last))["id"]
            refused(await http.post(PATH, json={"input": "x", "previous_response_id": last}), 400, "previous_response_id")

    asyncio.run(run())


def test_stored_conversation_counts_against_the_size_of_a_body() -> None:
    async def run() -> None:
        async with served(RecordingEngine("Hello"), max_body_mb=1) as http:
            image = message("user", {"type": "input_image", "image_url": padded(450_000)})
            first = await create(http, [image])
            second = await create(http, [image], previous_response_id=first["id"])
            answer = await http.post(PATH, json={"input": "x", "previous_response_id": second["id"]})
            assert "stored conversation" in refused(answer, 413, None)["message"]

    asyncio.run(run())


@pytest.mark.parametrize("streamed", [False, True])
def test_response_whose_client_disconnects_is_not_stored(streamed: bool) -> None:
    engine = WaitingEngine()

    async def run() -> None:
        async with served(engine) as http:
            transport: Any = http._transport
            body = json.dumps({"input": "Hello", "stream": streamed}).encode()
            request = [{"type": "http.request", "body": body, "more_body": False}]

            async def receive() -> Any:
                if request:
                    return request.pop()
                await engine.started.wait()
                return {"type": "http.disconnect"}

            async def send(message: Any) -> None:
                pass

            scope = {"type": "http", "method": "POST", "path": PATH, "headers": [], "client": ("127.0.0.1", 1), "query_string": b""}
            await transport.app(scope, receive, send)
            assert await transport.app.state.gateway.responses.list("") == []
            engine.answers = True
            await create(http)
            assert len(await transport.app.state.gateway.responses.list("")) == 1

    asyncio.run(run())


TYPES = ["message", "function_call", "function_call_output", "item_reference", "input_text"]
KEYS = ["type", "role", "content", "text", "image_url", "file_id", "id", "output", "call_id"]
leaves = st.none() | st.booleans() | st.integers() | st.sampled_from([*TYPES, "user", "assistant", PNG])
junk = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    max_leaves=12,
)


def test_spoilt_request_never_gets_a_5xx() -> None:
    fields = st.dictionaries(st.sampled_from([*CreateResponse.model_fields, *CreateResponse.refused]), junk, max_size=3)

    async def run(bodies: list[Any]) -> None:
        async with served(RecordingEngine("Hello")) as http:
            for body in bodies:
                answer = await http.post(PATH, json=body)
                assert answer.status_code < 500, (body, answer.text)

    @settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.builds(lambda given, others: {"input": given} | others, junk, fields), min_size=10, max_size=15))
    def spoil(bodies: list[Any]) -> None:
        asyncio.run(run(bodies))

    spoil()
