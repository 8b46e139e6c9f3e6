"""The OpenAPI document, composed of the descriptions of APIs.

The schemas of request bodies are made from the declarations that also validate requests.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from llava_gateway import __version__
from llava_gateway.api.operation import STRING, ApiDescription, Operation, Schema
from llava_gateway.api.schema import RequestBody
from llava_gateway.http.middleware.auth import KEY_HEADERS

ERRORS = {
    401: "The API key is missing or unknown",
    403: "The web page that sends the request may not use this server",
    429: "There are too many requests, in all or with this API key; `retry-after` says when to retry",
}
"""What each error status means, for every operation."""
BODY_ERRORS = {
    400: "A field is wrong, and the error names it; or prompt and answer do not fit the context",
    404: "There is no such model",
    408: "The body did not arrive in time",
    413: "The body is larger than `--max-body-mb`",
    415: "The body has another media type, or it is compressed",
    500: "The engine failed on this request",
    503: "The model is loading, the engine is restarting, or the server is stopping; `retry-after` says when to retry",
    504: "The answer was not complete in time",
}
"""What each further error status means, for operations with a body."""
PARAMETER_ERRORS = {404: "The path names nothing that exists"}
"""What each further error status means, for paths with a parameter and without a body."""
SECURITY_SCHEMES = {"bearer": {"type": "http", "scheme": "bearer"}} | {
    name: {"type": "apiKey", "in": "header", "name": name} for name in KEY_HEADERS
}
"""The ways to send an API key, as AuthMiddleware accepts them."""
_QUALIFIED_NAME = re.compile(r"llava_gateway__api__(\w+?)__\w+?__(\w+)")
"""pydantic's name of a declaration whose class has the same name as one of another API."""
_PATH_PARAMETER = re.compile(r"{(\w+)}")


def openapi(apis: Sequence[ApiDescription], public: Collection[str], *, with_keys: bool) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document.

    `public`: the paths that need no API key. `with_keys`: whether the other paths need one.
    """
    schemas, references = _schemas(apis)
    paths: dict[str, dict[str, Any]] = {}
    for api in apis:
        for operation in api.operations:
            described = _operation(api, operation, references)
            if with_keys and operation.path in public:
                described["security"] = []
            paths.setdefault(operation.path, {})[operation.method.lower()] = described
    document = {
        "openapi": "3.1.0",
        "info": {
            "title": "LLaVA Gateway",
            "version": __version__,
            "description": "The APIs of this server for chats with LLaVA about images. Fields that are not named here are ignored.",
        },
        "tags": [{"name": api.title, "description": api.text} for api in apis],
        "paths": paths,
        "components": {"schemas": schemas},
    }
    if with_keys:
        document["components"] = {"schemas": schemas, "securitySchemes": SECURITY_SCHEMES}
        document["security"] = [{name: []} for name in SECURITY_SCHEMES]
    return document


def _schemas(apis: Sequence[ApiDescription]) -> tuple[dict[str, Schema], Mapping[type[BaseModel], Schema]]:
    """Return the schemas of all declarations and errors by their names, and the reference to each declaration."""
    models = dict.fromkeys(model for api in apis for model in _models(api))
    made = models_json_schema([(model, "validation") for model in models], ref_template="#/components/schemas/{model}")
    references, definitions = _with_short_names(made[0]), _with_short_names(made[1])
    schemas: dict[str, Schema] = definitions.get("$defs", {})
    for model in models:
        if issubclass(model, RequestBody):
            schema = schemas[_name(references[model, "validation"])]
            fields = schema.get("properties", {}) | _other_fields(model)
            schema["properties"] = {name: fields[name] for name in (*schema.get("required", ()), *fields)}
    errors = {api.error["title"]: api.error for api in apis}
    return schemas | errors, {model: references[model, "validation"] for model in models}


def _with_short_names(value: Any) -> Any:
    """Return schemas with the names of APIs instead of modules, such as `OllamaChatBody`."""
    if isinstance(value, dict):
        return {_with_short_names(key): _with_short_names(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_with_short_names(each) for each in value]
    return _QUALIFIED_NAME.sub(_short_name, value) if isinstance(value, str) else value


def _short_name(found: re.Match[str]) -> str:
    api, name = found.groups()
    return "".join(word.capitalize() for word in api.split("_")) + name


def _models(api: ApiDescription) -> Iterator[type[BaseModel]]:
    """Yield the declarations of an API's bodies and objects."""
    for operation in api.operations:
        if isinstance(operation.body, type):
            yield operation.body
    yield from api.objects


def _name(reference: Schema) -> str:
    """Return the name of the schema that a reference names."""
    return str(reference["$ref"]).rpartition("/")[2]


def _other_fields(body: type[RequestBody]) -> dict[str, Schema]:
    """Return the schemas of refused and ignored fields."""
    refused = {
        name: {"enum": list(field.allowed_values), "description": f"Refused: {field.reason}."} for name, field in body.refused.items()
    }
    return refused | {name: {"description": f"Ignored: {reason}."} for name, reason in body.ignored.items()}


def _operation(api: ApiDescription, operation: Operation, references: Mapping[type[BaseModel], Schema]) -> dict[str, Any]:
    """Return an operation as OpenAPI describes it."""
    described: dict[str, Any] = {
        "tags": [api.title],
        "summary": operation.summary,
        "operationId": re.sub(r"\W+", "_", f"{operation.method.lower()}{operation.path}").rstrip("_"),
    }
    in_path = _PATH_PARAMETER.findall(operation.path)
    if parameters := dict.fromkeys(in_path, STRING) | dict(operation.parameters):
        described["parameters"] = [
            {"name": name, "in": "path" if name in in_path else "query", "required": name in in_path, "schema": schema}
            for name, schema in parameters.items()
        ]
    if body := operation.body:
        schema = references[body] if isinstance(body, type) else body
        described["requestBody"] = {"required": True, "content": {operation.body_media_type: {"schema": schema}}}
    described["responses"] = _answers(operation) | _errors(api, operation, has_parameters=bool(in_path))
    return described


def _answers(operation: Operation) -> dict[str, Any]:
    """Return the responses of an operation that are no errors."""
    content: dict[str, Any] = {} if operation.answer is None else {"application/json": {"schema": operation.answer}}
    for media_type, description in operation.other_answers.items():
        content[media_type] = {"schema": {"description": description}}
    return {"200": {"description": "The answer", "content": content}} if content else {}


def _errors(api: ApiDescription, operation: Operation, *, has_parameters: bool) -> dict[str, Any]:
    """Return the responses of an operation that are errors."""
    meanings = ERRORS | (BODY_ERRORS if operation.body else PARAMETER_ERRORS if has_parameters else {}) | dict(operation.errors)
    content = {api.error_media_type: {"schema": {"$ref": f"#/components/schemas/{api.error['title']}"}}}
    return {str(status): {"description": meanings[status], "content": content} for status in sorted(meanings)}
