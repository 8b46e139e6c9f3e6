"""Checks of OpenAI's contract: `ContractTransport` reads each response of the server and validates it.

openai-chat.schema.json is extracted from OpenAI's own OpenAPI document (github.com/openai/openai-openapi, MIT licence).
"""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from helpers.responses import check_event_stream, check_response
from jsonschema import Draft202012Validator

SCHEMA = json.loads(Path(__file__).with_name("openai-chat.schema.json").read_text())
TYPES = {
    400: "invalid_request_error",
    401: "invalid_request_error",
    403: "invalid_request_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "overloaded",
    504: "server_error",
}


def _validator(name: str, schema: dict[str, Any] = SCHEMA) -> Draft202012Validator:
    return Draft202012Validator({"$ref": f"#/$defs/{name}", "$defs": schema["$defs"]})


def _with_scores(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema with null allowed for the first token of a completion's `logprobs`.

    The first token of an echoed prompt has no log probability. OpenAI's servers send null, which the schema does not mention."""
    schema = copy.deepcopy(schema)
    choice = schema["$defs"]["CreateCompletionResponse"]["properties"]["choices"]["items"]
    (logprobs,) = [each for each in choice["properties"]["logprobs"]["anyOf"] if each["type"] == "object"]
    for name in ("token_logprobs", "top_logprobs"):
        values = logprobs["properties"][name]
        values["prefixItems"] = [{"anyOf": [values["items"], {"type": "null"}]}]
    return schema


def _with_nulls(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema with null allowed for `finish_reason` and `usage`.

    OpenAI describes a completion's chunks by the schema of the whole completion, where neither may be null. OpenAI's servers send null for
    `finish_reason` before the last choice chunk, and for `usage` before the last chunk."""
    schema = copy.deepcopy(schema)
    properties = schema["$defs"]["CreateCompletionResponse"]["properties"]
    properties["choices"]["items"]["properties"]["finish_reason"]["enum"].append(None)
    properties["choices"]["items"]["properties"]["finish_reason"]["type"] = ["string", "null"]
    properties["usage"] = {"anyOf": [properties["usage"], {"type": "null"}]}
    return schema


ERROR = _validator("ErrorResponse")
WHOLE = {
    "/v1/chat/completions": _validator("CreateChatCompletionResponse"),
    "/v1/completions": _validator("CreateCompletionResponse", _with_scores(SCHEMA)),
    "/v1/models": _validator("ListModelsResponse"),
    "/v1/models/llava-demo": _validator("Model"),
}
CHUNK = {
    "/v1/chat/completions": _validator("CreateChatCompletionStreamResponse"),
    "/v1/completions": _validator("CreateCompletionResponse", _with_nulls(_with_scores(SCHEMA))),
}


def frames(text: str) -> Iterator[str]:
    """Yield the data of a stream's events. Comments are left out; anything else fails the test."""
    assert text.endswith("\n\n"), text[-200:]
    for frame in text.split("\n\n")[:-1]:
        if frame.startswith(":"):
            assert frame == ": keep-alive"
            continue
        assert frame.startswith("data: "), frame
        assert "\n" not in frame
        yield frame.removeprefix("data: ")


def check_error(body: bytes | str, status: int | None = None) -> None:
    """Raise if the body is not an error of OpenAI's shape. `status`: fixes the error's type."""
    value = json.loads(body)
    ERROR.validate(value)
    assert set(value) == {"error"}
    assert set(value["error"]) == {"message", "type", "param", "code"}
    assert value["error"]["message"]
    if status is not None:
        assert value["error"]["type"] == TYPES[status]


def check_stream(path: str, text: str) -> None:
    """Raise if the text is not a stream of OpenAI's chunks with an end."""
    *events, done = frames(text)
    assert done == "[DONE]"
    last_seen = -1
    finished: set[int] = set()
    for event in events:
        assert not finished or "error" not in event.split(":")[0]
        chunk = json.loads(event)
        if "error" in chunk:
            check_error(event)
            assert event is events[-1]
            return
        CHUNK[path].validate(chunk)
        for choice in chunk["choices"]:
            index = choice["index"]
            if path == "/v1/chat/completions":
                if index > last_seen:  # choices appear in order, each first with its role
                    assert index == last_seen + 1
                    last_seen = index
                    assert choice["delta"] == {"role": "assistant", "content": ""}
                else:
                    assert "role" not in choice["delta"]
            assert index not in finished
            if choice["finish_reason"]:
                finished.add(index)
    assert finished
    assert finished >= set(range(last_seen + 1))


def check(method: str, path: str, status: int, headers: httpx.Headers, body: bytes) -> None:
    """Raise AssertionError or jsonschema.ValidationError if the response breaks OpenAI's contract."""
    assert headers["x-request-id"]
    if status >= 400:
        assert headers["content-type"] == "application/json"
        if method != "HEAD":
            check_error(body, status)
        told = "retry-after" in headers or headers.get("x-should-retry") == "false"
        assert told == (status == 429 or status >= 500)
    elif headers["content-type"].startswith("text/event-stream"):
        if path == "/v1/responses":
            check_event_stream(body.decode())
        else:
            check_stream(path, body.decode())
    elif path == "/v1/responses":
        check_response(json.loads(body))
    elif path in WHOLE:
        WHOLE[path].validate(json.loads(body))


class ContractTransport(httpx.HTTPTransport):
    """A transport that reads each response to its end and checks it, so tests of the time between chunks cannot use it."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = super().handle_request(request)
        response.read()
        check(request.method, request.url.path, response.status_code, response.headers, response.content)
        return response
