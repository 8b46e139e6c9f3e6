"""The operations of Anthropic's Messages, as the OpenAPI document describes them."""

from llava_gateway.api.anthropic.request import CountTokensRequest, CreateMessageRequest
from llava_gateway.api.operation import (
    ARRAY,
    EVENT_STREAM,
    INTEGER,
    OBJECT,
    STRING,
    STRING_OR_NULL,
    ApiDescription,
    Operation,
    object_schema,
)

PREFIX = "/v1/messages"
_MESSAGE = object_schema(
    id=STRING,
    type={"const": "message"},
    role={"const": "assistant"},
    model=STRING,
    content=ARRAY,
    stop_reason=STRING,
    stop_sequence=STRING_OR_NULL,
    usage=OBJECT,
)
_ERROR = {"title": "AnthropicErrorResponse"} | object_schema(
    type={"const": "error"}, error=object_schema(type=STRING, message=STRING), request_id=STRING
)

DESCRIPTION = ApiDescription(
    "Anthropic",
    "Anthropic's Messages API.",
    (
        Operation(
            "POST",
            PREFIX,
            "Answer a chat with images, in Anthropic's shapes",
            CreateMessageRequest,
            _MESSAGE,
            {EVENT_STREAM: "With `stream`: server-sent events from `message_start` to `message_stop`"},
        ),
        Operation(
            "POST", f"{PREFIX}/count_tokens", "Count the tokens of a prompt", CountTokensRequest, object_schema(input_tokens=INTEGER)
        ),
    ),
    _ERROR,
)
