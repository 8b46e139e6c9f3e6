"""The OpenAPI document of this door, made from the same declarations that check requests."""

import re
from collections.abc import Sequence
from functools import cache
from html import escape
from typing import Any

from pydantic.json_schema import models_json_schema

from llava_gateway import __version__
from llava_gateway.api.openai.protocol import ChatCompletionRequest, DetokenizeRequest, TextCompletionRequest, TokenizeRequest
from llava_gateway.api.schema import RequestBody

BODIES: tuple[type[RequestBody], ...] = (ChatCompletionRequest, TextCompletionRequest, TokenizeRequest, DetokenizeRequest)
ERRORS = {
    400: "A field is wrong, and `error.param` names it; or the prompt and its answer do not fit (`context_length_exceeded`)",
    401: "The server wants a key that it knows",
    404: "No such model",
    408: "The body did not arrive in time",
    413: "The body is larger than `--max-body-mb`",
    415: "The body is not JSON, or compressed",
    429: "Too many requests, of all or of this key; `retry-after` says when to come again",
    500: "The engine failed on this request",
    503: "The model is loading, the engine is being restarted, or the server is stopping; `retry-after` says when to come again",
    504: "The answer was not whole in time",
}


@cache
def openapi() -> dict[str, Any]:
    """OpenAPI 3.1."""
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
            "/v1/chat/completions": _post(ChatCompletionRequest, "A chat, with images", "chat.completion", "usage", stream=True),
            "/v1/completions": _post(TextCompletionRequest, "A prompt as it is, with images", "text_completion", "usage", stream=True),
            "/v1/models": _get("The model that is served", _object("object", "data")),
            "/v1/models/{model}": _get("One model", _object("id", "object", "created", "owned_by"), parameter="model"),
            "/tokenize": _post(TokenizeRequest, "What a prompt or a chat comes to, in tokens", None, "count", "max_model_len", "tokens"),
            "/detokenize": _post(DetokenizeRequest, "The text of tokens", None, "prompt"),
            "/version": _get("The gateway's version", _object("version")),
        },
        "components": {"schemas": schemas},
    }


def _other_fields(body: type[RequestBody]) -> dict[str, Any]:
    refused = {
        name: {"enum": list(field.unless), "description": f"Refused: {field.why}."}
        for name, field in body.refused.items()
    }  # fmt: skip
    return refused | {name: {"description": f"Ignored: {why}."} for name, why in body.ignored.items()}


def _post(body: type[RequestBody], summary: str, kind: str | None, *keys: str, stream: bool = False) -> dict[str, Any]:
    answer = _object(*(("id", "object", "created", "model", "choices") if kind else ()), *keys)
    if kind:
        answer["properties"] = {"object": {"const": kind}}
    content: dict[str, Any] = {"application/json": {"schema": answer}}
    if stream:
        content["text/event-stream"] = {"schema": {"type": "string", "description": "`data: {...}` events, the last `data: [DONE]`"}}
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
    text, maybe = {"type": "string"}, {"type": ["string", "null"]}
    error = _object("message", "type", "param", "code") | {"properties": {"message": text, "type": text, "param": maybe, "code": maybe}}
    return _object("error") | {"properties": {"error": error}}


STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; background: #fff }
h2 { margin-top: 3rem; border-top: 1px solid #ccc; padding-top: 1rem } code { font: .9em ui-monospace, monospace }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0 }
tr + tr { border-top: 1px solid #eee } th { white-space: nowrap; font-weight: normal } .no { color: #777 }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #111 } tr + tr { border-color: #333 } h2 { border-color: #444 } }
"""


def docs_page(document: dict[str, Any]) -> str:
    """HTML."""
    info, schemas = document["info"], document["components"]["schemas"]
    paths = "".join(
        _operation(method, path, operation, schemas) for path, methods in document["paths"].items() for method, operation in methods.items()
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{info['title']}</title><style>{STYLE}</style><h1>{info['title']} {info['version']}</h1><p>{_prose(info['description'])} "
        f'The same for machines: <a href="openapi.json">openapi.json</a>.</p>{paths}</html>'
    )


def _operation(method: str, path: str, operation: dict[str, Any], schemas: dict[str, Any]) -> str:
    html = f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{_prose(operation['summary'])}.</p>"
    if body := operation.get("requestBody"):
        schema = schemas[body["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]]
        rows = "".join(_field(name, field, name in schema.get("required", ()), schemas) for name, field in schema["properties"].items())
        html += f"<h3>Fields</h3><table>{rows}</table>"
    rows = "".join(f"<tr><th>{status}<td>{_prose(answer['description'])}" for status, answer in operation["responses"].items())
    return f"{html}<h3>Answers</h3><table>{rows}</table>"


def _field(name: str, field: dict[str, Any], required: bool, schemas: dict[str, Any]) -> str:
    says = field.get("description", "")
    honoured = not says.startswith(("Refused", "Ignored"))
    kind = escape(_type(field, schemas)) + (", required" if required else "") if honoured else ""
    return f"<tr{'' if honoured else ' class=no'}><th><code>{escape(name)}</code><td>{kind}<td>{_prose(says)}"


def _type(schema: dict[str, Any], schemas: dict[str, Any]) -> str:
    """A JSON Schema in a few words: `integer 0 to 20`, `array of string`."""
    if reference := schema.get("$ref"):
        return _type(schemas[reference.rpartition("/")[2]], schemas)
    if options := schema.get("anyOf") or schema.get("oneOf"):
        kinds = dict.fromkeys(_type(option, schemas) for option in options if option.get("type") != "null")
        return " or ".join(kinds)
    if "const" in schema:
        return repr(schema["const"]).lower() if isinstance(schema["const"], bool) else str(schema["const"])
    kind = str(schema.get("type", "any"))
    if kind == "array":
        return f"array of {_type(schema.get('items', {}), schemas)}"
    low, high = schema.get("minimum", schema.get("exclusiveMinimum")), schema.get("maximum")
    if low is not None and low < -(1 << 31):
        return kind
    if low is not None and high is not None:
        return f"{kind} {'over ' if 'exclusiveMinimum' in schema else ''}{low} to {high}"
    return f"{kind} from {low}" if low is not None else kind


def _prose(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
