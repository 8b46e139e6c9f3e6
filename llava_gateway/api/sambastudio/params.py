"""`params`: how answers are drawn. API v1 types them, `{"type": "int", "value": "100"}`, v2 does not; here either form goes anywhere."""

import ast
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Annotated, Any, ClassVar, Literal, Self

import orjson
from pydantic import BeforeValidator, Field

from llava_gateway.api.schema import Refused, RequestBody
from llava_gateway.errors import InvalidRequest
from llava_gateway.types import SamplingParams

_QUOTED = re.compile(r"""'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*\"""")
_PYTHON_LIST = re.compile(rf"\[(?:{_QUOTED.pattern})(?:, (?:{_QUOTED.pattern}))*\]")
MAX_STOP_SEQUENCES = 16


@contextmanager
def within(path: str) -> Iterator[None]:
    """Fields that `RequestBody.parse` refuses in the block stand below `path` in the client's request."""
    try:
        yield
    except InvalidRequest as error:
        raise InvalidRequest(f"{path}.{error.message}", param=f"{path}.{error.param}") from None


def _text_as(kind: Callable[[str], Any]) -> BeforeValidator:
    """Text that spells a value is taken for it; any other value is left to the field's own type."""

    def parse(value: Any) -> Any:
        if isinstance(value, str):
            with suppress(ValueError):
                return kind(value)
        return value

    return BeforeValidator(parse)


def _boolean(text: str) -> bool | str:
    return {"true": True, "false": False}.get(text.strip().lower(), text)


def _strings(value: Any) -> Any:
    """Text that holds several strings: a list in JSON, or as Python prints one, or strings in quotes with commas between. Other text is
    one string; none if it is empty."""
    if not isinstance(value, str):
        return value
    if not value.startswith(("[", '"')):
        return [value] if value else []
    listed = value if value.startswith("[") else f"[{value}]"
    with suppress(orjson.JSONDecodeError):
        return orjson.loads(listed)
    quoted = _QUOTED.findall(listed)
    if _PYTHON_LIST.fullmatch(listed) and len(quoted) <= MAX_STOP_SEQUENCES:
        with suppress(ValueError, SyntaxError):
            return [ast.literal_eval(string) for string in quoted]
    raise ValueError(f"must be one string, or a list of at most {MAX_STOP_SEQUENCES}")


_Bool = Annotated[bool, _text_as(_boolean)]
_StopSequence = Annotated[str, Field(min_length=1, max_length=10_000)]


class Params(RequestBody):
    """Ranges and defaults are SambaStudio's. A null is as good as leaving a field out."""

    do_sample: _Bool = Field(False, description="true draws tokens by their probability; default false: greedy, whatever temperature says")
    max_tokens_to_generate: Annotated[int, Field(ge=1, le=4096), _text_as(int)] = Field(
        100, description="1 to 4096; default 100. Prompt, images and this have to fit the model's context together"
    )
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False), _text_as(float)] = Field(
        1.0, description="0 to 2; default 1.0; with do_sample"
    )
    top_k: Annotated[int, Field(ge=1, le=1000), _text_as(int)] = Field(50, description="1 to 1000; default 50; with do_sample")
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False), _text_as(float)] = Field(
        1.0, description="over 0, to 1; default 1.0; with do_sample"
    )
    repetition_penalty: Annotated[float, Field(ge=1, le=10, allow_inf_nan=False), _text_as(float)] = Field(
        1.0, description="1 to 10; default 1.0: none"
    )
    stop_sequences: Annotated[list[_StopSequence], Field(max_length=MAX_STOP_SEQUENCES, fail_fast=True), BeforeValidator(_strings)] = Field(
        [],
        description=f"up to {MAX_STOP_SEQUENCES}, at which the answer ends, without them: a list, a list in text, or one as it is",
    )
    top_logprobs: Annotated[int, Field(ge=0, le=20), _text_as(int)] = Field(
        0, description="0 to 20 of the likeliest tokens in each place; default 0, which leaves `logprobs` empty"
    )
    preprocessing: Literal["llava-hf", "llava-sn"] | None = Field(
        None, description="the template: `llava-hf`, or `llava-sn` (SambaNova's fine-tuned checkpoints); default: the server's"
    )
    process_prompt: _Bool = Field(False, description="true: the prompt is a conversation, as JSON; default false: what the user says")

    refused: ClassVar = {
        "return_token_count_only": Refused("every answer has its count", unless=(False, "", "false", "False")),
        "tools": Refused("this model calls no tools"),
        "tool_choice": Refused("this model calls no tools", unless=("", "none")),
    }
    ignored: ClassVar = {"select_expert": "there is one model, and the path may name it"}

    @classmethod
    def parse(cls, body: dict[str, Any]) -> Self:
        """InvalidRequest, with the path of the field (`params.top_k`), for whatever is wrong."""
        plain = {name: value["value"] if isinstance(value, dict) and "value" in value else value for name, value in body.items()}
        with within("params"):
            return super().parse({name: value for name, value in plain.items() if value is not None})

    def sampling(self) -> SamplingParams:
        return SamplingParams(
            max_tokens=self.max_tokens_to_generate,
            temperature=self.temperature if self.do_sample else 0.0,
            top_p=self.top_p,
            top_k=self.top_k,
            repetition_penalty=self.repetition_penalty,
            stop=tuple(self.stop_sequences),
            logprobs=self.top_logprobs,
        )
