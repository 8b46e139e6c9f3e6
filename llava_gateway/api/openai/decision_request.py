"""The request body of `/v1/decisions`: questions about one input. It is declared after OpenAI's `DecisionCreateParams`."""

from typing import Annotated, Any, ClassVar, Literal, get_args

import orjson
from pydantic import BeforeValidator, Discriminator, Field, PlainValidator, Tag, WithJsonSchema

from llava_gateway.api.openai.decision_input import InputItem, InputPart
from llava_gateway.api.openai.messages import MAX_MESSAGES, check_counts
from llava_gateway.api.openai.sampling import ASPECT_RATIO, MODEL, NO_EFFECT, VLLM_REFUSED, ModelName
from llava_gateway.api.schema import LIST, ONE, ONE_OR_LIST, TAG_PREFIX, RefusedField, RequestBody, StrictModel
from llava_gateway.settings import AspectRatio

MAX_QUESTIONS, MAX_CHOICES, MAX_LEVELS = 400, 255, 10
"""OpenAI's bounds."""
MAX_OPTIONS = 8192
"""The upper bound of choices and levels in all questions together."""
MAX_INSTRUCTION_PARTS = 64
QuestionType = Literal["predicate", "choice", "score"]


def _refuse_criteria(value: Any) -> None:
    if value is not None:
        raise ValueError("is not supported: send choices or levels, or describe the criteria in instructions")


def _check_value(value: Any) -> str | bool:
    if isinstance(value, bool) or (isinstance(value, str) and value):
        return value
    raise ValueError("must be a boolean, or a string that is not empty")


_Instructions = Annotated[
    Annotated[str, ONE] | Annotated[list[InputPart], Field(min_length=1, max_length=MAX_INSTRUCTION_PARTS, fail_fast=True), LIST],
    ONE_OR_LIST,
]
ChoiceValue = Annotated[
    str | bool, PlainValidator(_check_value), WithJsonSchema({"anyOf": [{"type": "string", "minLength": 1}, {"type": "boolean"}]})
]
_Label = Annotated[str, Field(min_length=1)]


class Question(StrictModel):
    """The fields that all questions have."""

    instructions: _Instructions = Field(description="the statement or the question: a text, or a list of text, image and JSON parts")
    name: str | None = Field(None, max_length=256, description="is returned with the answer")
    criteria: Annotated[None, BeforeValidator(_refuse_criteria)] = Field(None, exclude=True, description="is refused")


class Predicate(Question):
    type: Literal["predicate"]


class Choice(StrictModel):
    value: ChoiceValue
    description: str | None = None


class ChoiceQuestion(Question):
    type: Literal["choice"]
    choices: list[Choice] = Field(min_length=2, max_length=MAX_CHOICES, fail_fast=True)


class Level(StrictModel):
    label: _Label
    description: str | None = None


class ScoreQuestion(Question):
    type: Literal["score"]
    levels: list[Level] = Field(min_length=2, max_length=MAX_LEVELS, fail_fast=True)


def _question_tag(question: Any) -> str | None:
    kind = question.get("type") if isinstance(question, dict) else None
    return TAG_PREFIX + kind if isinstance(kind, str) and kind in get_args(QuestionType) else None


AnyQuestion = Annotated[
    Annotated[Predicate, Tag(TAG_PREFIX + "predicate")]
    | Annotated[ChoiceQuestion, Tag(TAG_PREFIX + "choice")]
    | Annotated[ScoreQuestion, Tag(TAG_PREFIX + "score")],
    Discriminator(_question_tag, custom_error_type="question", custom_error_message="must be an object of type predicate, choice or score"),
]


def _count_options(questions: Any) -> Any:
    """Raise ValueError for too many options. This check runs first: a few megabytes can hold hundreds of thousands of them."""
    if isinstance(questions, list):
        options = sum(
            len(question[field])
            for field in ("choices", "levels", "instructions")
            for question in questions[: MAX_QUESTIONS + 1]
            if isinstance(question, dict) and isinstance(question.get(field), list)
        )
        if options > MAX_OPTIONS:
            raise ValueError(f"must have at most {MAX_OPTIONS} choices, levels and parts of instructions in all")
    return questions


class DecisionRequest(RequestBody):
    """`POST /v1/decisions`."""

    model: ModelName = Field("", description=MODEL)
    input: Annotated[
        Annotated[str, ONE] | Annotated[list[InputItem], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True), LIST],
        ONE_OR_LIST,
        BeforeValidator(lambda items: check_counts(items, "content", "output", "tool_calls")),
    ] = Field(
        description="a text, or a list of messages, calls of tools and their outputs; messages and outputs may have images and videos"
    )
    questions: Annotated[
        list[AnyQuestion], Field(min_length=1, max_length=MAX_QUESTIONS, fail_fast=True), BeforeValidator(_count_options)
    ] = Field(description=f"1 to {MAX_QUESTIONS} questions, each of type predicate, choice or score; the answers have the same order")
    image_aspect_ratio: AspectRatio | None = Field(None, description=ASPECT_RATIO)
    cache_salt: str | None = Field(
        None,
        min_length=1,
        max_length=128,
        description="vLLM's: the engine shares its caches only between prompts of the same salt",
    )

    refused: ClassVar = {
        "joint": RefusedField("each question is answered on its own"),
        "state": RefusedField("send it as input"),
        "instructions": RefusedField("each question has its own; send common ones as a system message of input"),
        "images": RefusedField("send them as input_image parts of input"),
        "audio": RefusedField("the model cannot hear"),
        "videos": RefusedField("send them as video_url parts of input"),
        "stream": RefusedField("the answers come together"),
        "chat_template_kwargs": RefusedField("the prompts of questions have one form"),
    } | {name: VLLM_REFUSED[name] for name in ("mm_processor_kwargs", "media_io_kwargs", "request_id", "priority")}
    ignored: ClassVar = {
        "prompt_cache_key": "the prefix cache finds prompts by their content",
        "prompt_cache_options": "the prefix cache keeps as much as fits",
        "safety_identifier": NO_EFFECT,
    }


def option_text(value: str | bool) -> str:
    """Return the text of a choice's value, as the model reads it."""
    return value if isinstance(value, str) else orjson.dumps(value).decode()
