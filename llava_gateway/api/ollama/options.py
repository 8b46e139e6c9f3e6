"""The sampling parameters in the field `options`, with Ollama's names and defaults."""

from typing import Annotated, Any, ClassVar, Self

from pydantic import Field

from llava_gateway.api.schema import (
    INT64,
    LIST,
    ONE,
    ONE_OR_LIST,
    RefusedField,
    RequestBody,
    error_path_prefix,
    to_schema_text,
)
from llava_gateway.errors import InvalidRequest
from llava_gateway.types import MODEL_DEFAULTS, SamplingParams, StructuredOutput

TEMPERATURE, TOP_K, TOP_P = 0.8, 40, 0.9
"""Ollama's defaults. The model's own defaults have priority."""
MAX_STOP_STRINGS = 64
INT32 = 1 << 31
NO_SAMPLER = "the engine does not have this sampler"
OF_THE_OPERATOR = "the operator chooses how the model is loaded"
_StopString = Annotated[str, Field(min_length=1, max_length=10_000)]
_Stop = Annotated[
    Annotated[_StopString, ONE] | Annotated[list[_StopString], Field(max_length=MAX_STOP_STRINGS, fail_fast=True), LIST], ONE_OR_LIST
]
_OPTION_BY_PARAMETER = {"repetition_penalty": "repeat_penalty"}
"""The names of options that differ from the names of sampling parameters."""


class Options(RequestBody):
    """The field `options`."""

    temperature: float | None = Field(None, ge=0, le=5, description=f"0 to 5; 0 always takes the likeliest token; default {TEMPERATURE}")
    top_k: int | None = Field(
        None, ge=-1, lt=INT32, description=f"sample only from the k likeliest tokens; 0 and -1 are off; default {TOP_K}"
    )
    top_p: float | None = Field(
        None,
        ge=0,
        le=1,
        description="0 to 1: sample only from the likeliest tokens whose probabilities add up to this share; "
        f"0 always takes the likeliest token; default {TOP_P}",
    )
    min_p: float | None = Field(
        None, ge=0, le=1, description="leave out tokens whose probability is below this share of the likeliest token's; default 0"
    )
    seed: int | None = Field(
        None, ge=-INT64, lt=INT64, description="the same seed, request and server give the same answer; default -1, which is no seed"
    )
    num_predict: int | None = Field(
        None,
        gt=-INT32,
        lt=INT32,
        description="the maximum number of tokens in the answer; 0 and less: as many as the context has room for; "
        "default: `--default-max-tokens`",
    )
    stop: _Stop | None = Field(
        None, description=f"one string, or a list of up to {MAX_STOP_STRINGS}; the answer ends before the first of them"
    )
    repeat_penalty: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="above 1 discourages repetition of tokens, those of the prompt included; clamped to 0.01 to 100; default 1",
    )
    presence_penalty: float | None = Field(None, ge=-2, le=2, description="-2 to 2; default 0")
    frequency_penalty: float | None = Field(None, ge=-2, le=2, description="-2 to 2; default 0")
    repeat_last_n: int | None = Field(
        None, ge=-1, lt=INT32, description="0: no penalties; other values have no effect, since penalties count all tokens"
    )

    refused: ClassVar = {
        "mirostat": RefusedField(NO_SAMPLER),
        "typical_p": RefusedField(NO_SAMPLER, allowed_values=(None, 1, 1.0)),
        "tfs_z": RefusedField(NO_SAMPLER, allowed_values=(None, 1, 1.0)),
    }
    ignored: ClassVar = {
        "num_ctx": "the context has the length that `/api/show` returns",
        "num_keep": "a prompt that does not fit the context is refused and never truncated",
        "penalize_newline": "penalties count all tokens",
        "mirostat_tau": "it has an effect only with mirostat",
        "mirostat_eta": "it has an effect only with mirostat",
        "num_batch": OF_THE_OPERATOR,
        "num_gpu": OF_THE_OPERATOR,
        "main_gpu": OF_THE_OPERATOR,
        "num_thread": OF_THE_OPERATOR,
        "draft_num_predict": OF_THE_OPERATOR,
        "use_mmap": OF_THE_OPERATOR,
        "use_mlock": OF_THE_OPERATOR,
        "low_vram": OF_THE_OPERATOR,
        "f16_kv": OF_THE_OPERATOR,
        "vocab_only": OF_THE_OPERATOR,
        "numa": OF_THE_OPERATOR,
    }

    @classmethod
    def parse(cls, body: dict[str, Any]) -> Self:
        """Validate the options. Raises InvalidRequest with the path of the wrong option, such as `options.top_k`."""
        with error_path_prefix("options"):
            return super().parse(body)

    def sampling(self, structured_output: StructuredOutput | None, logprobs: int | None) -> SamplingParams:
        """Return the gateway's sampling parameters.

        `logprobs`: the number of likeliest tokens to return at each position, or None for no log probabilities.
        """
        greedy, penalties = self.top_p == 0, self.repeat_last_n != 0
        return SamplingParams(
            max_tokens=None if self.num_predict is None else self.num_predict if self.num_predict > 0 else INT32,
            lower_max_tokens_to_fit=True,
            temperature=0.0 if greedy else TEMPERATURE if self.temperature is None else self.temperature,
            top_p=(TOP_P if self.top_p is None else self.top_p) or 1.0,
            top_k=max(TOP_K if self.top_k is None else self.top_k, 0),
            min_p=self.min_p or 0.0,
            seed=None if self.seed == -1 else self.seed,
            presence_penalty=(self.presence_penalty or 0.0) if penalties else 0.0,
            frequency_penalty=(self.frequency_penalty or 0.0) if penalties else 0.0,
            repetition_penalty=(self.repeat_penalty or 1.0) if penalties else 1.0,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            structured_output=structured_output,
            logprobs=logprobs,
            unset=frozenset(
                name
                for name in MODEL_DEFAULTS
                if getattr(self, _OPTION_BY_PARAMETER.get(name, name)) is None and not (greedy and name == "temperature")
            ),
        )


def to_structured_output(wanted: str | dict[str, Any] | None) -> StructuredOutput | None:
    """Return the structure that the field `format` asks for: `json`, or a JSON Schema. None for plain text. Raises InvalidRequest."""
    if not wanted and not isinstance(wanted, dict):
        return None
    if wanted == "json":
        return StructuredOutput("json_object", param="format")
    if isinstance(wanted, str):
        raise InvalidRequest("format: must be json, or a JSON Schema as an object.", param="format")
    return StructuredOutput("json", to_schema_text(wanted, "format"), "format")
