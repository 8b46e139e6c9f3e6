"""The operations of Ollama's API, as the OpenAPI document describes them."""

from llava_gateway.api.ollama.options import Options
from llava_gateway.api.ollama.request import ChatBody, GenerateBody, PullBody, ShowBody
from llava_gateway.api.operation import ARRAY, BOOLEAN, INTEGER, OBJECT, STRING, ApiDescription, Operation, Schema, object_schema

NDJSON = "application/x-ndjson"
_STREAM = "A JSON object in each line; the last one has `done: true`, the counts of tokens and the durations"
_ERROR = {"title": "OllamaError"} | object_schema(error=STRING)
_FIXED = "The operator chooses the models"


_COUNTS = ("total_duration", "load_duration", "prompt_eval_count", "prompt_eval_duration", "eval_count", "eval_duration")


def _answer(**content: Schema) -> Schema:
    """Return the schema of a whole answer. An answer to a request without a prompt has no counts and durations."""
    schema = object_schema(model=STRING, created_at=STRING, **content, done=BOOLEAN, done_reason=STRING)
    return schema | {"properties": schema["properties"] | dict.fromkeys(_COUNTS, INTEGER)}


def _refused(method: str, path: str, summary: str, reason: str = _FIXED) -> Operation:
    return Operation("DELETE" if method == "DELETE" else "POST", path, summary, errors={400: reason})


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
        _refused("POST", "/api/push", "Refuse to upload a model"),
        _refused("POST", "/api/create", "Refuse to create a model"),
        _refused("POST", "/api/copy", "Refuse to copy a model"),
        _refused("DELETE", "/api/delete", "Refuse to delete a model"),
        _refused("POST", "/api/blobs/{digest}", "Refuse a file of a model"),
        _refused("POST", "/api/embed", "Refuse embeddings", "The model has no embeddings"),
        _refused("POST", "/api/embeddings", "Refuse embeddings", "The model has no embeddings"),
    ),
    _ERROR,
    objects=(Options,),
)
