"""The operations of the Responses API, as the OpenAPI document describes them."""

from llava_gateway.api.openai.responses.handlers import MAX_LISTED
from llava_gateway.api.openai.responses.request import CreateResponse
from llava_gateway.api.operation import ARRAY, BOOLEAN, EVENT_STREAM, INTEGER, OBJECT, STRING, Operation, object_schema

RESPONSE = object_schema(
    id=STRING, object={"const": "response"}, created_at=INTEGER, status=STRING, model=STRING, output=ARRAY, usage=OBJECT
)
DELETED = object_schema(id=STRING, object={"const": "response"}, deleted={"const": True})
NOT_STORED = {404: "No such response of this API key is stored"}


def response_operations(prefix: str) -> tuple[Operation, ...]:
    """Return the operations below a prefix."""
    path = f"{prefix}/responses/{{id}}"
    return (
        Operation(
            "POST",
            f"{prefix}/responses",
            "Answer an input with images, and store the response",
            CreateResponse,
            RESPONSE,
            {EVENT_STREAM: "With `stream`: server-sent events, `event: ...` and `data: {...}`; the last event has the whole response"},
        ),
        Operation("GET", path, "Return a stored response", answer=RESPONSE, errors=NOT_STORED),
        Operation("DELETE", path, "Delete a stored response", answer=DELETED, errors=NOT_STORED),
        Operation(
            "GET",
            f"{path}/input_items",
            "List the input items of a stored response",
            answer=object_schema(object={"const": "list"}, data=ARRAY, first_id=STRING, last_id=STRING, has_more=BOOLEAN),
            parameters={
                "limit": {"type": "integer", "minimum": 1, "maximum": MAX_LISTED, "default": 20},
                "order": {"enum": ["asc", "desc"], "default": "desc"},
                "after": STRING,
            },
            errors=NOT_STORED,
        ),
        Operation(
            "POST",
            f"{path}/cancel",
            "Cancel a response in the background, of which there are none",
            answer=OBJECT,
            errors=NOT_STORED | {400: "The response does not run in the background"},
        ),
    )
