"""Ollama's paths over HTTP, with an engine that says what the test gives it. Answers are validated by Ollama's Python package."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from helpers.errors import LEAKS
from helpers.in_process import served
from helpers.requests import MODEL
from helpers.scripted_engine import CALL, RENDERS_TOOLS, SCHEMA, FailingEngine, ScriptedEngine
from ollama import ChatResponse, GenerateResponse, ListResponse, ProcessResponse, ShowResponse

from llava_gateway.errors import EngineFailed
from llava_gateway.types import Delta, Prompt, SamplingParams, TokenLogprob, Usage

pytestmark = pytest.mark.slow

CHAT, GENERATE = "/api/chat", "/api/generate"
HELLO: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}
TOOLS = [{"type": "function", "function": {"name": "show", "description": "Show a place", "parameters": SCHEMA}}]
FAILURE = EngineFailed("The engine failed.")
DURATIONS = ("total_duration", "prompt_eval_duration", "eval_duration")


class LogprobEngine(ScriptedEngine):
    """Says one token with its log probability."""

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
        top = ((b"Hi", -0.5), (b"\xf0", -1.5)) if sampling.logprobs else ()
        on_delta(Delta(0, "Hi", 1, "length", logprobs=(TokenLogprob(b"Hi", -0.5, top),)))


def lines(text: str) -> list[dict[str, Any]]:
    """Return the JSON objects of a stream. Clients parse every line, so none may be empty."""
    assert text.endswith("\n")
    return [json.loads(line) for line in text[:-1].split("\n")]


def refused(answer: Any, status: int, part: str = "") -> None:
    assert answer.status_code == status, answer.text
    assert not LEAKS.search(answer.text)
    assert list(answer.json()) == ["error"]
    assert part in answer.json()["error"]


def check_end(end: dict[str, Any]) -> None:
    assert end["done"]
    assert end["done_reason"] == "stop"
    assert (end["eval_count"], end["load_duration"]) == (2, 0)
    assert end["prompt_eval_count"] > 0
    assert all(end[name] > 0 for name in DURATIONS)
    assert end["total_duration"] >= end["prompt_eval_duration"] + end["eval_duration"] - 1


def test_chat_streams_by_default_and_ends_with_counts_and_durations() -> None:
    with served(ScriptedEngine("Hel", "lo!")) as client:
        answer = client.post(CHAT, json=HELLO)
    assert answer.headers["content-type"] == "application/x-ndjson"
    *chunks, end = lines(answer.text)
    assert "".join(chunk["message"]["content"] for chunk in chunks) == "Hello!"
    assert {(chunk["model"], chunk["message"]["role"], chunk["done"]) for chunk in chunks} == {(MODEL, "assistant", False)}
    for chunk in (*chunks, end):
        ChatResponse.model_validate(chunk)
    check_end(end)


def test_whole_chat_is_one_json_object() -> None:
    with served(ScriptedEngine("Hel", "lo!")) as client:
        answer = client.post(CHAT, json=HELLO | {"stream": False})
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["message"] == {"role": "assistant", "content": "Hello!"}
    ChatResponse.model_validate(answer.json())
    check_end(answer.json())


def test_generate_answers_whole_and_streamed_and_its_context_continues_the_conversation() -> None:
    engine = ScriptedEngine("Hel", "lo!")
    with served(engine) as client:
        whole = client.post(GENERATE, json={"prompt": "Hi", "stream": False}).json()
        *chunks, end = lines(client.post(GENERATE, json={"prompt": "Hi"}).text)
        longer = client.post(GENERATE, json={"prompt": "Again", "context": end["context"], "stream": False}).json()
        raw = client.post(GENERATE, json={"prompt": "USER: Hi ASSISTANT:", "raw": True, "stream": False}).json()
    assert whole["response"] == "".join(chunk["response"] for chunk in chunks) == "Hello!"
    assert whole["context"] == end["context"]
    assert "context" not in raw
    assert longer["prompt_eval_count"] > whole["prompt_eval_count"] + 2
    for each in (whole, *chunks, end, longer, raw):
        GenerateResponse.model_validate(each)
    check_end(whole)
    check_end(end)


@pytest.mark.parametrize("path", [CHAT, GENERATE])
def test_request_without_a_prompt_is_answered_at_once(path: str) -> None:
    with served(FailingEngine(FAILURE)) as client:
        answer = client.post(path, json={"model": MODEL, "keep_alive": 0}).json()
    assert (answer["done"], answer["done_reason"]) == (True, "load")
    assert answer.get("response", answer.get("message", {}).get("content")) == ""


def test_log_probabilities_have_ollamas_form() -> None:
    with served(LogprobEngine()) as client:
        body = HELLO | {"logprobs": True, "top_logprobs": 2}
        whole = client.post(CHAT, json=body | {"stream": False}).json()
        chunk, end = lines(client.post(CHAT, json=body).text)
        plain = client.post(CHAT, json=HELLO | {"logprobs": True, "stream": False}).json()
    expected = {
        "token": "Hi",
        "logprob": -0.5,
        "bytes": [72, 105],
        "top_logprobs": [{"token": "Hi", "logprob": -0.5, "bytes": [72, 105]}, {"token": "\ufffd", "logprob": -1.5, "bytes": [240]}],
    }
    assert whole["logprobs"] == chunk["logprobs"] == [expected]
    assert whole["done_reason"] == end["done_reason"] == "length"
    assert "logprobs" not in end
    assert list(plain["logprobs"][0]) == ["token", "logprob", "bytes"]


def test_calls_of_tools_arrive_whole_with_their_arguments_as_objects() -> None:
    script = [CALL[start : start + 5] for start in range(0, len(CALL), 5)]
    with served(ScriptedEngine(*script), template=RENDERS_TOOLS) as client:
        assert client.post("/api/show", json={"model": MODEL}).json()["capabilities"] == ["completion", "vision", "tools"]
        whole = client.post(CHAT, json=HELLO | {"tools": TOOLS, "stream": False}).json()
        streamed = lines(client.post(CHAT, json=HELLO | {"tools": TOOLS}).text)
    (call,) = whole["message"]["tool_calls"]
    assert call["function"] == {"index": 0, "name": "show", "arguments": {"at": "top"}}
    found = [call["function"] for chunk in streamed for call in chunk["message"].get("tool_calls", ())]
    assert found == [call["function"]]
    assert not streamed[-1]["message"].get("tool_calls")
    assert whole["done_reason"] == "stop"
    ChatResponse.model_validate(whole)


def test_number_of_any_length_in_a_call_is_no_error_of_the_server() -> None:
    """Such a number does not fit 64 bits."""
    number = "1" * 40
    with served(ScriptedEngine(CALL.replace('"top"', number)), template=RENDERS_TOOLS) as client:
        whole = client.post(CHAT, json=HELLO | {"tools": TOOLS, "stream": False})
        assert whole.status_code == 200
        assert number in whole.text
        assert number in client.post(CHAT, json=HELLO | {"tools": TOOLS}).text


def test_tools_of_a_model_without_them_are_left_out_and_named_in_a_header() -> None:
    with served(ScriptedEngine("Hi")) as client:
        assert client.post("/api/show", json={"model": MODEL}).json()["capabilities"] == ["completion", "vision"]
        answer = client.post(CHAT, json=HELLO | {"tools": TOOLS, "stream": False})
    assert answer.headers["x-llava-tools"] == "ignored"


def test_error_is_a_text_and_the_last_line_of_a_stream_that_has_started() -> None:
    with served(FailingEngine(FAILURE, "Hel")) as client:
        first, last = lines(client.post(CHAT, json=HELLO).text)
        assert first["message"]["content"] == "Hel"
        assert last == {"error": "The engine failed."}
        refused(client.post(CHAT, json=HELLO | {"stream": False}), 500, "The engine failed.")
        refused(client.post(CHAT, json={"model": "other", "messages": [{"role": "user"}]}), 404, "other")
        refused(client.post(CHAT, json=HELLO | {"options": {"mirostat": 1}}), 400, "options.mirostat")
        refused(client.post(GENERATE, json={"prompt": "a", "images": ["aGVsbG8gd29ybGQ="]}), 400, "images[0]")
        refused(client.post(GENERATE, content="x"), 400)
        refused(client.get(CHAT), 405)


def test_models_have_a_tag_and_are_found_with_and_without_it() -> None:
    with served(ScriptedEngine("Hi"), model_alias=("llava:7b", "team/llava")) as client:
        tags, running = client.get("/api/tags").json(), client.get("/api/ps").json()
        names = [f"{MODEL}:latest", "llava:7b", "team/llava:latest"]
        assert [model["name"] for model in tags["models"]] == [model["model"] for model in running["models"]] == names
        assert {model["context_length"] for model in running["models"]} == {65_536}
        assert len({model["digest"] for model in tags["models"]}) == 3
        ListResponse.model_validate(tags)
        ProcessResponse.model_validate(running)
        for name in (MODEL, *names, "team/llava"):
            answer = client.post(CHAT, json=HELLO | {"model": name, "stream": False}).json()
            assert answer["model"] == name
            assert answer["message"]["content"] == "Hi"
        refused(client.post(CHAT, json=HELLO | {"model": "llava"}), 404, "llava")
        refused(client.post(CHAT, json=HELLO | {"model": f"{MODEL}:latest:latest"}), 404)


def test_model_is_shown_with_its_capabilities_and_context() -> None:
    with served(ScriptedEngine("Hi")) as client:
        shown = client.post("/api/show", json={"name": f"{MODEL}:latest", "verbose": True}).json()
        refused(client.post("/api/show", json={"model": "other"}), 404)
    found = ShowResponse.model_validate(shown)
    assert found.modelinfo is not None
    assert found.modelinfo["llava.context_length"] == 65_536
    assert found.details is not None
    assert "clip" in (found.details.families or ())
    assert "ASSISTANT" in (found.template or "")


def test_pull_of_a_served_model_succeeds_at_once() -> None:
    with served(ScriptedEngine()) as client:
        assert client.post("/api/pull", json={"model": MODEL, "stream": False}).json() == {"status": "success"}
        assert [line["status"] for line in lines(client.post("/api/pull", json={"name": MODEL}).text)] == ["pulling manifest", "success"]
        refused(client.post("/api/pull", json={"model": "llava:13b"}), 404, MODEL)


def test_models_cannot_be_changed_and_have_no_embeddings() -> None:
    with served(ScriptedEngine()) as client:
        for path in ("push", "create", "copy", "blobs/sha256:0"):
            refused(client.post(f"/api/{path}", json={"model": MODEL}), 400, "operator")
        refused(client.request("DELETE", "/api/delete", json={"model": MODEL}), 400, "operator")
        for path in ("embed", "embeddings"):
            refused(client.post(f"/api/{path}", json={"model": MODEL, "input": "a"}), 400, "embeddings")


def test_root_is_the_chat_page_for_browsers_and_ollama_for_other_clients() -> None:
    html = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    with served(ScriptedEngine(), api_keys=("secret",)) as client:
        assert client.get("/").text == "Ollama is running"
        assert client.head("/").status_code == 200
        assert client.get("/", headers=html).text.startswith("<!doctype html>")
        refused(client.get("/api/tags"), 401)
        assert client.get("/api/tags", headers={"authorization": "Bearer secret"}).status_code == 200
    with served(ScriptedEngine(), apis=("openai", "ollama")) as client:
        assert client.get("/", headers=html).text == "Ollama is running"
        assert client.get("/api/version").json()["version"].count(".") == 2


def test_curl_without_a_content_type_is_understood() -> None:
    with served(ScriptedEngine("Hi")) as client:
        form = {"content-type": "application/x-www-form-urlencoded"}
        answer = client.post(GENERATE, content=json.dumps({"prompt": "Hello", "stream": False}), headers=form)
        assert answer.json()["response"] == "Hi"
        refused(client.post(GENERATE, content="prompt=Hello", headers=form), 400, "JSON")
