"""The operations of text-generation-webui's API, as the OpenAPI document describes them."""

from llava_gateway.api.operation import INTEGER, OBJECT, STRING, STRING_OR_NULL, ApiDescription, Operation, Schema, object_schema
from llava_gateway.api.text_generation_webui.chat import ChatBody
from llava_gateway.api.text_generation_webui.model import ModelBody
from llava_gateway.api.text_generation_webui.prompts import GenerateBody, TokenCountBody


def _results(**fields: Schema) -> Schema:
    """Return the schema of an answer with one result that has these fields."""
    return object_schema(results={"type": "array", "items": object_schema(**fields), "minItems": 1, "maxItems": 1})


DESCRIPTION = ApiDescription(
    "text-generation-webui",
    "text-generation-webui's API, as it was until November 2023. A WebSocket to `/api/v1/stream` takes messages that are a GenerateBody. A "
    "WebSocket to `/api/v1/chat-stream` takes messages that are a ChatBody. The server answers each message with events. "
    '`{"event": "text_stream", "message_num": 0, "text": "..."}` has a piece of text; in a chat, `history` with the whole text so far '
    'replaces `text`. `{"event": "error", "error": {...}}` is an error. `{"event": "stream_end", "message_num": 1}` is the last event.',
    (
        Operation("POST", "/api/v1/generate", "Continue a prompt with images", GenerateBody, _results(text=STRING)),
        Operation("POST", "/api/v1/chat", "Answer a chat with images", ChatBody, _results(history=OBJECT)),
        Operation("POST", "/api/v1/stop-stream", "End all answers of this client", answer=object_schema(results={"const": "success"})),
        Operation("POST", "/api/v1/token-count", "Count the tokens of a prompt", TokenCountBody, _results(tokens=INTEGER)),
        Operation("GET", "/api/v1/model", "Return the model's name", answer=object_schema(result=STRING)),
        Operation(
            "POST",
            "/api/v1/model",
            "Describe the model, or list the models",
            ModelBody,
            object_schema(result={"type": ["string", "array", "object"]}),
        ),
    ),
    error={"title": "TextGenerationWebuiError"}
    | object_schema(error=object_schema(message=STRING, param=STRING_OR_NULL, code=STRING_OR_NULL)),
)
