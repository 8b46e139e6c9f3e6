"""The OpenAPI document of this API, made from the declarations that also validate requests."""

from collections.abc import Sequence
from functools import cache
from typing import Any

from pydantic.json_schema import models_json_schema

from llava_gateway import __version__
from llava_gateway.api.openai.chat_request import ChatCompletionRequest
from llava_gateway.api.openai.completion_request import TextCompletionRequest
from llava_gateway.api.openai.decision_request import DecisionRequest
from llava_gateway.api.openai.tokenization import DetokenizeRequest, TokenizeRequest
from llava_gateway.api.schema import RequestBody

BODIES: tuple[type[RequestBody], ...] = (ChatCompletionRequest, TextCompletionRequest, DecisionRequest, TokenizeRequest, DetokenizeRequest)
ERRORS = {
    400: "A field is wrong, and `error.param` names it; or prompt and answer do not fit the context (`context_length_exceeded`)",
    401: "The API key is missing or unknown",
    404: "There is no such model",
    408: "The body did not arrive in time",
    413: "The body is larger than `--max-body-mb`",
    415: "The body is not JSON, or it is compressed",
    429: "There are too many requests, in all or with this API key; `retry-after` says when to retry",
    500: "The engine failed on this request",
    503: "The model is loading, the engine is restarting, or the server is stopping; `retry-after` says when to retry",
    504: "The answer was not complete in time",
}
"""What each status of an error means."""


@cache
def openapi() -> dict[str, Any]:
    """Return the OpenAPI 3.1 document."""
    _, definitions = models_json_schema([(body, "validation") for body in BODIES], ref_template="#/components/schemas/{model}")
    schemas = definitions["$defs"]
    for body in BODIES:
        required = schemas[body.__name__].get("required", ())
        fields = schemas[body.__name__]["properties"] | _other_fields(body)
        schemas[body.__name__]["properties"] = {name: fields[name] for name in (*required, *fields)}
    schemas["ErrorResponse"] = _error_response()
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "LLaVA Gateway",
            "version": __version__,
            "description": "LLaVA behind the OpenAI API. Fields that are not named here are ignored.",
        },
        "paths": {
            "/v1/chat/completions": _post(ChatCompletionRequest, "Answer a chat with images", "chat.completion", "usage", stream=True),
            "/v1/completions": _post(TextCompletionRequest, "Continue a prompt with images", "text_completion", "usage", stream=True),
            "/v1/decisions": _post(DecisionRequest, "Answer typed questions with probabilities", None, "answers", "model", "usage"),
            "/v1/models": _get("List the served models", _object("object", "data")),
            "/v1/models/{model}": _get("Describe one model", _object("id", "object", "created", "owned_by"), parameter="model"),
            "/tokenize": _post(TokenizeRequest, "Return the tokens of a prompt or a chat", None, "count", "max_model_len", "tokens"),
            "/detokenize": _post(DetokenizeRequest, "Return the text of tokens", None, "prompt"),
            "/version": _get("Return the gateway's version", _object("version")),
        },
        "components": {"schemas": schemas},
    }


def _other_fields(body: type[RequestBody]) -> dict[str, Any]:
    """Return the schemas of refused and ignored fields."""
    refused = {
        name: {"enum": list(field.allowed_values), "description": f"Refused: {field.reason}."} for name, field in body.refused.items()
    }
    return refused | {name: {"description": f"Ignored: {reason}."} for name, reason in body.ignored.items()}


def _post(body: type[RequestBody], summary: str, object_type: str | None, *keys: str, stream: bool = False) -> dict[str, Any]:
    """Return a POST operation.

    `object_type`: the field `object` of an answer with choices, or None for another answer. `keys`: the answer's other required fields.
    """
    answer = _object(*(("id", "object", "created", "model", "choices") if object_type else ()), *keys)
    if object_type:
        answer["properties"] = {"object": {"const": object_type}}
    content: dict[str, Any] = {"application/json": {"schema": answer}}
    if stream:
        description = "Server-sent events, `data: {...}`; the last event is `data: [DONE]`"
        content["text/event-stream"] = {"schema": {"type": "string", "description": description}}
    schema = {"$ref": f"#/components/schemas/{body.__name__}"}
    return {
        "post": {
            "summary": summary,
            "operationId": body.__name__,
            "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
            "responses": {"200": {"description": "The answer", "content": content}} | _errors(ERRORS),
        }
    }


def _get(summary: str, schema: dict[str, Any], parameter: str | None = None) -> dict[str, Any]:
    """Return a GET operation. `schema`: the answer's. `parameter`: the name of the path's parameter, if it has one."""
    operation: dict[str, Any] = {
        "summary": summary,
        "responses": {"200": {"description": "The answer", "content": {"application/json": {"schema": schema}}}} | _errors([401]),
    }
    if parameter:
        operation["parameters"] = [{"name": parameter, "in": "path", "required": True, "schema": {"type": "string"}}]
        operation["responses"] |= _errors([404])
    return {"get": operation}


def _errors(statuses: Sequence[int] | dict[int, str]) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorResponse"}}}
    return {str(status): {"description": ERRORS[status], "content": content} for status in statuses}


def _object(*keys: str) -> dict[str, Any]:
    return {"type": "object", "required": list(keys)}


def _error_response() -> dict[str, Any]:
    text, optional = {"type": "string"}, {"type": ["string", "null"]}
    properties = {"message": text, "type": text, "param": optional, "code": optional}
    error = _object(*properties) | {"properties": properties}
    return _object("error") | {"properties": {"error": error}}
