"""How an API describes itself for the OpenAPI document.

Each API declares its operations next to its routes. `api/docs` composes `/openapi.json` and `/docs` from the APIs that are served.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel

Schema = dict[str, Any]
"""A JSON Schema."""
STRING: Schema = {"type": "string"}
STRING_OR_NULL: Schema = {"type": ["string", "null"]}
INTEGER: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
BOOLEAN: Schema = {"type": "boolean"}
ARRAY: Schema = {"type": "array"}
OBJECT: Schema = {"type": "object"}
EVENT_STREAM = "text/event-stream"


def object_schema(**fields: Schema) -> Schema:
    """Return the schema of a JSON object that always has these fields. Further fields are allowed."""
    return {"type": "object", "required": list(fields), "properties": fields}


ERROR_RESPONSE: Schema = {"title": "ErrorResponse"} | object_schema(
    error=object_schema(message=STRING, type=STRING, param=STRING_OR_NULL, code=STRING_OR_NULL)
)
"""An error in OpenAI's shape, which all paths have that belong to no API with a shape of its own."""


@dataclass(frozen=True)
class Operation:
    """A method of a path.

        Operation("POST", "/feedback", "Store a vote on an answer", FeedbackRequest, object_schema(id=STRING), errors={507: "No room"})

    The document adds the errors that every operation has: of authentication and limits, of a body, and of a path's parameters.
    """

    method: Literal["GET", "POST", "DELETE"]
    path: str
    """As Starlette's route has it, without converters: `/v1/models/{model}`."""
    summary: str
    """One line, without a full stop."""
    body: type[BaseModel] | Schema | None = None
    """The declaration that validates the request's body, or a schema. None: clients send no body."""
    answer: Schema | None = None
    """The JSON of a 200. None: no answer is JSON."""
    other_answers: Mapping[str, str] = field(default_factory=dict)
    """A 200 that is no JSON, such as a stream: a description in words, by its media type."""
    parameters: Mapping[str, Schema] = field(default_factory=dict)
    """The schemas of parameters by their names: those of the query, and those of the path that are more than a string."""
    errors: Mapping[int, str] = field(default_factory=dict)
    """The meaning of further statuses, or another meaning of usual ones."""
    body_media_type: str = "application/json"


@dataclass(frozen=True)
class ApiDescription:
    """The description of an API. Its title is the tag of its operations."""

    title: str
    text: str
    """Sentences about the API. Paths for WebSockets are described here, since OpenAPI has no form for them."""
    operations: Sequence[Operation]
    error: Schema = field(default_factory=lambda: ERROR_RESPONSE)
    """The schema of an error, with a `title`, which is its name in the document."""
    error_media_type: str = "application/json"
    objects: Sequence[type[BaseModel]] = ()
    """Declarations of objects that no body's schema refers to, such as the JSON in a string."""
