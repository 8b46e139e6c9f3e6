"""The operations of SambaStudio's predict APIs, as the OpenAPI document describes them."""

from collections.abc import Iterator

from llava_gateway.api.operation import ARRAY, EVENT_STREAM, INTEGER, OBJECT, STRING, ApiDescription, Operation, Schema, object_schema
from llava_gateway.api.sambastudio.params import Params
from llava_gateway.api.sambastudio.protocol import Conversation, InputsBody, InstanceBody, InstancesBody, ItemsBody, PredictBody

NAME: Schema = {"type": "string", "description": "free text; the name of a served model selects this model"}
PREDICTION = object_schema(
    completion=STRING,
    logprobs=OBJECT,
    prompt=STRING,
    stop_reason={"enum": ["end_of_text", "stop_sequence", "max_len_reached"]},
    tokens=ARRAY,
    total_tokens_count=INTEGER,
)
PREDICTIONS: Schema = {"type": "array", "items": PREDICTION}
ITEMS: Schema = {"type": "array", "items": object_schema(id=STRING, value=PREDICTION)}
JSON_LINES = "application/json-lines"
RESPONSE = '{"stream_token": "...", "is_last_response": false}'
V1_STREAM = f'Lines of JSON, `{{"result": {{"responses": [{RESPONSE}]}}}}`'
V2_STREAM = f'Lines of JSON, `{{"result": {{"items": [{{"id": "...", "value": {RESPONSE}}}]}}}}`'
NLP_STREAM = f"Server-sent events, `data: {RESPONSE}`"


def _predict(
    path: str, version: str, body: type[PredictBody], answer: Schema, stream_body: type[PredictBody], media_type: str, stream: str
) -> Iterator[Operation]:
    """Yield the two operations of one API: for whole answers, and for streams.

    `answer`: the schema of a whole answer. `media_type` and `stream`: of a stream, in words.
    """
    names = {"project": NAME, "endpoint": NAME}
    yield Operation("POST", f"{path}/{{project}}/{{endpoint}}", f"Answer prompts, {version}", body, answer, parameters=names)
    yield Operation(
        "POST",
        f"{path}/stream/{{project}}/{{endpoint}}",
        f"Answer one prompt with a stream, {version}",
        stream_body,
        other_answers={media_type: f"{stream}. The last response has the whole prediction, token counts and times."},
        parameters=names,
    )


V1_ANSWER = object_schema(status=OBJECT, predictions=PREDICTIONS)
DESCRIPTION = ApiDescription(
    "SambaStudio",
    "SambaStudio's predict API for LLaVA endpoints: v1, v2 and the older NLP API. The field `params` is an object of Params. With its "
    "`process_prompt` a prompt is a Conversation, as JSON in a string.",
    (
        *_predict("/api/predict/generic", "API v1", InstancesBody, V1_ANSWER, InstanceBody, JSON_LINES, V1_STREAM),
        *_predict("/api/v2/predict/generic", "API v2", ItemsBody, object_schema(items=ITEMS), ItemsBody, JSON_LINES, V2_STREAM),
        *_predict("/api/predict/nlp", "NLP API", InputsBody, object_schema(data=PREDICTIONS), InputsBody, EVENT_STREAM, NLP_STREAM),
    ),
    error={"title": "SambaStudioError"} | object_schema(detail=STRING),
    objects=(Params, Conversation),
)
