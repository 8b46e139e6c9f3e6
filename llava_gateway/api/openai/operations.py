"""The operations of the OpenAI API, as the OpenAPI document describes them."""

from llava_gateway.api.openai import sambastudio
from llava_gateway.api.openai.chat_request import ChatCompletionRequest
from llava_gateway.api.openai.completion_request import TextCompletionRequest
from llava_gateway.api.openai.decision_request import DecisionRequest
from llava_gateway.api.openai.files import file_operations
from llava_gateway.api.openai.responses.operations import response_operations
from llava_gateway.api.openai.tokenization import DetokenizeRequest, TokenizeRequest
from llava_gateway.api.operation import (
    ARRAY,
    EVENT_STREAM,
    INTEGER,
    OBJECT,
    STRING,
    ApiDescription,
    Operation,
    Schema,
    object_schema,
)

STREAM = {EVENT_STREAM: "With `stream`: server-sent events, `data: {...}`; the last event is `data: [DONE]`"}


def _answer(object_type: str) -> Schema:
    """Return the schema of a whole answer."""
    fields = {"id": STRING, "object": {"const": object_type}, "created": INTEGER, "model": STRING, "choices": ARRAY, "usage": OBJECT}
    return object_schema(**fields)


def _chat(path: str) -> Operation:
    """Return the operation of chat completions on a path."""
    return Operation("POST", path, "Answer a chat with images and videos", ChatCompletionRequest, _answer("chat.completion"), STREAM)


def _shared(prefix: str) -> tuple[Operation, ...]:
    """Return the operations that OpenAI and DeepInfra have, each below its own prefix."""
    model = object_schema(id=STRING, object={"const": "model"}, created=INTEGER, owned_by=STRING)
    models = object_schema(object={"const": "list"}, data=ARRAY)
    return (
        _chat(f"{prefix}/chat/completions"),
        Operation(
            "POST",
            f"{prefix}/completions",
            "Continue a prompt with images and videos",
            TextCompletionRequest,
            _answer("text_completion"),
            STREAM,
        ),
        *response_operations(prefix),
        *file_operations(prefix),
        Operation(
            "POST",
            f"{prefix}/decisions",
            "Answer typed questions with probabilities",
            DecisionRequest,
            object_schema(answers=ARRAY, model=STRING, usage=OBJECT),
        ),
        Operation("GET", f"{prefix}/models", "List the served models", answer=models),
        Operation("GET", f"{prefix}/models/{{model}}", "Describe one model", answer=model, errors={404: "There is no such model"}),
    )


DESCRIPTION = ApiDescription(
    "OpenAI",
    "The OpenAI API, with vLLM's fields and vLLM's `/tokenize` and `/detokenize`.",
    (
        *_shared("/v1"),
        Operation(
            "POST",
            "/tokenize",
            "Return the tokens of a prompt or a chat",
            TokenizeRequest,
            object_schema(
                count=INTEGER,
                max_model_len=INTEGER,
                image_tokens=INTEGER,
                video_tokens=INTEGER,
                tokens=ARRAY,
                token_strs={"type": ["array", "null"]},
            ),
        ),
        Operation("POST", "/detokenize", "Return the text of tokens", DetokenizeRequest, object_schema(prompt=STRING)),
        Operation("GET", "/version", "Return the gateway's version", answer=object_schema(version=STRING)),
    ),
)
DEEPINFRA_DESCRIPTION = ApiDescription("DeepInfra", "The OpenAI API below DeepInfra's prefix.", _shared("/v1/openai"))
SAMBASTUDIO_DESCRIPTION = ApiDescription(
    "SambaStudio's OpenAI API", "Chat completions on paths that name a project and an endpoint.", tuple(map(_chat, sambastudio.PATHS))
)
