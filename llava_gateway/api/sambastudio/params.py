"""The sampling parameters in the field `params`.

API v1 sends them with their types, `{"type": "int", "value": "100"}`, and v2 sends plain values. The server accepts both forms everywhere.
"""

import ast
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Any, ClassVar, Literal, Self

import orjson
from pydantic import BeforeValidator, Field

from llava_gateway.api.schema import RefusedField, RequestBody, error_path_prefix
from llava_gateway.settings import AspectRatio
from llava_gateway.types import SamplingParams

_QUOTED = re.compile(r"""'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*\"""")
_PYTHON_LIST = re.compile(rf"\[(?:{_QUOTED.pattern})(?:, (?:{_QUOTED.pattern}))*\]")
MAX_STOP_SEQUENCES = 16
NO_TOOLS = "the model cannot call tools"
DEPLOYMENT = "SambaStudio sets it when an endpoint is deployed; here the operator's flags decide (docs/vllm-flags.md)"


def _parse_text_with(parse: Callable[[str], Any]) -> BeforeValidator:
    """Return a validator that parses text with `parse`. Other values, and text that `parse` refuses, are left to the field's own type."""

    def validate(value: Any) -> Any:
        if isinstance(value, str):
            with suppress(ValueError):
                return parse(value)
        return value

    return BeforeValidator(validate)


def _parse_boolean(text: str) -> bool | str:
    return {"true": True, "false": False}.get(text.strip().lower(), text)


def _parse_strings(value: Any) -> Any:
    """Return the strings that a text lists.

    A list is JSON, Python's form of a list, or quoted strings with commas between them. Any other text is one string; an empty text is an
    empty list.
    """
    if not isinstance(value, str):
        return value
    if not value.startswith(("[", '"')):
        return [value] if value else []
    text = value if value.startswith("[") else f"[{value}]"
    with suppress(orjson.JSONDecodeError):
        return orjson.loads(text)
    strings = _QUOTED.findall(text)
    if _PYTHON_LIST.fullmatch(text) and len(strings) <= MAX_STOP_SEQUENCES:
        with suppress(ValueError, SyntaxError):
            return [ast.literal_eval(string) for string in strings]
    raise ValueError(f"must be one string, or a list of at most {MAX_STOP_SEQUENCES} strings")


_Bool = Annotated[bool, _parse_text_with(_parse_boolean)]
_IntText, _FloatText = _parse_text_with(int), _parse_text_with(float)
_StopSequence = Annotated[str, Field(min_length=1, max_length=10_000)]


class Params(RequestBody):
    """The sampling parameters, with SambaStudio's ranges and defaults. Null means that the field is left out."""

    do_sample: _Bool = Field(
        False, description="true: sample tokens by their probability; false (default): take the likeliest token, whatever temperature is"
    )
    max_tokens_to_generate: Annotated[int, Field(ge=1, le=4096), _IntText] = Field(
        100, description="1 to 4096; default 100; the prompt, the images and these tokens must fit the model's context together"
    )
    temperature: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), _FloatText] = Field(
        1.0, description="0 to 1, as in the original; default 1.0; only with do_sample"
    )
    top_k: Annotated[int, Field(ge=1, le=1000), _IntText] = Field(50, description="1 to 1000; default 50; only with do_sample")
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False), _FloatText] = Field(
        1.0, description="above 0, up to 1; default 1.0; only with do_sample"
    )
    repetition_penalty: Annotated[float, Field(ge=1, le=10, allow_inf_nan=False), _FloatText] = Field(
        1.0, description="1 to 10; default 1.0, which is no penalty"
    )
    stop_sequences: Annotated[
        list[_StopSequence], Field(max_length=MAX_STOP_SEQUENCES, fail_fast=True), BeforeValidator(_parse_strings)
    ] = Field(
        [],
        description=f"up to {MAX_STOP_SEQUENCES} strings, as a list, as a text with a list, or one plain string; "
        "the answer ends before the first of them",
    )
    top_logprobs: Annotated[int, Field(ge=0, le=20), _IntText] = Field(
        0, description="return the 0 to 20 likeliest tokens at each position of the answer; default 0, which leaves `logprobs` empty"
    )
    preprocessing: Literal["llava-hf", "llava-sn"] | None = Field(
        None, description="the chat template: `llava-hf`, or `llava-sn` for SambaNova's fine-tuned checkpoints; default: the server's"
    )
    process_prompt: _Bool = Field(
        False, description="true: the prompt is a conversation in JSON; false (default): the prompt is the user's message"
    )
    image_aspect_ratio: AspectRatio | None = Field(
        None, description="an extension: how an image becomes square: `crop`, `pad` or `resize`; default: `--image-aspect-ratio`"
    )

    refused: ClassVar = {
        "return_token_count_only": RefusedField("every answer has its token count", allowed_values=(False, "", "false", "False")),
        "tools": RefusedField(NO_TOOLS),
        "tool_choice": RefusedField(NO_TOOLS, allowed_values=("", "none")),
    }
    ignored: ClassVar = {
        "select_expert": "the server has one model; the path may name it",
        "run_mode": DEPLOYMENT,
        "model_parallel_rdus": DEPLOYMENT,
        "model_parameter_count": DEPLOYMENT,
        "batch_size": DEPLOYMENT,
        "vocab_size": DEPLOYMENT,
        "max_seq_length": "a prompt that does not fit the model's context is refused and never truncated",
    }

    @classmethod
    def parse(cls, body: dict[str, Any]) -> Self:
        """Validate the parameters. Raises InvalidRequest with the path of the wrong field, such as `params.top_k`."""
        plain = {name: value["value"] if isinstance(value, dict) and "value" in value else value for name, value in body.items()}
        with error_path_prefix("params"):
            return super().parse({name: value for name, value in plain.items() if value is not None})

    def sampling(self) -> SamplingParams:
        """Return the gateway's sampling parameters."""
        return SamplingParams(
            max_tokens=self.max_tokens_to_generate,
            temperature=self.temperature if self.do_sample else 0.0,
            top_p=self.top_p,
            top_k=self.top_k,
            repetition_penalty=self.repetition_penalty,
            stop=tuple(self.stop_sequences),
            logprobs=self.top_logprobs,
        )
