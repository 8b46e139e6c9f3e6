"""The operations of Ollama's API, as the OpenAPI document describes them, and those that are refused."""

from dataclasses import dataclass
from typing import Literal

from llava_gateway.api.ollama.options import Options
from llava_gateway.api.ollama.request import ChatBody, GenerateBody, PullBody, ShowBody
from llava_gateway.api.operation import ARRAY, BOOLEAN, INTEGER, OBJECT, STRING, ApiDescription, Operation, Schema, object_schema

NDJSON = "application/x-ndjson"
_STREAM = "A JSON object in each line; the last one has `done: true`, the counts of tokens and the durations"
_ERROR = {"title": "OllamaError"} | object_schema(error=STRING)
_COUNTS = ("total_duration", "load_duration", "prompt_eval_count", "prompt_eval_duration", "eval_count", "eval_duration")


def _answer(**content: Schema) -> Schema:
    """Return the schema of a whole answer. An answer to a request without a prompt has no counts and durations."""
    schema = object_schema(model=STRING, created_at=STRING, **content, done=BOOLEAN, done_reason=STRING)
    return schema | {"properties": schema["properties"] | dict.fromkeys(_COUNTS, INTEGER)}


@dataclass(frozen=True, slots=True)
class Refusal:
    """An operation that this server does not have. Every request is answered 400."""

    method: Literal["POST", "DELETE"]
    path: str
    summary: str
    message: str

    def operation(self) -> Operation:
        """Return the description of the operation."""
        return Operation(self.method, self.path, self.summary, errors={400: self.message})


_FIXED = "This server serves the models that its operator has chosen; clients cannot change them."
_NO_EMBEDDINGS = "This model does not support embeddings."
REFUSALS = (
    Refusal("POST", "/api/push", "Refuse to upload a model", _FIXED),
    Refusal("POST", "/api/create", "Refuse to create a model", _FIXED),
    Refusal("POST", "/api/copy", "Refuse to copy a model", _FIXED),
    Refusal("DELETE", "/api/delete", "Refuse to delete a model", _FIXED),
    Refusal("POST", "/api/blobs/{digest}", "Refuse a file of a model", _FIXED),
    Refusal("POST", "/api/embed", "Refuse embeddings", _NO_EMBEDDINGS),
    Refusal("POST", "/api/embeddings", "Refuse embeddings", _NO_EMBEDDINGS),
)


DESCRIPTION = ApiDescription(
    "Ollama",
    "Ollama's API. The field `options` is an object of Options. `/` answers `Ollama is running`, except to browsers.",
    (
        Operation("POST", "/api/chat", "Answer a chat with images", ChatBody, _answer(message=OBJECT), {NDJSON: _STREAM}),
        Operation("POST", "/api/generate", "Answer a prompt with images", GenerateBody, _answer(response=STRING), {NDJSON: _STREAM}),
        Operation("GET", "/api/tags", "List the served models", answer=object_schema(models=ARRAY)),
        Operation("GET", "/api/ps", "List the loaded models", answer=object_schema(models=ARRAY)),
        Operation(
            "POST",
            "/api/show",
            "Describe a model",
            ShowBody,
            object_schema(
                modelfile=STRING,
                parameters=STRING,
                template=STRING,
                details=OBJECT,
                model_info=OBJECT,
                capabilities=ARRAY,
                modified_at=STRING,
            ),
        ),
        Operation("GET", "/api/version", "Return the version of Ollama's API", answer=object_schema(version=STRING)),
        Operation(
            "POST",
            "/api/pull",
            "Do nothing, for a served model",
            PullBody,
            object_schema(status=STRING),
            {NDJSON: "A JSON object in each line; the last one has the status success"},
        ),
        *(refusal.operation() for refusal in REFUSALS),
    ),
    _ERROR,
    objects=(Options,),
)
