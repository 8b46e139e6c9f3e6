"""How an answer is drawn: the fields that chat and plain completions share. OpenAI's, and vLLM's own under vLLM's names."""

import re
from typing import Annotated, Any, Literal, get_args

import orjson
from pydantic import AfterValidator, ConfigDict, Discriminator, Field, Tag, model_validator

from llava_gateway.api.schema import INT64, TAG, Refused, RequestBody, Strict
from llava_gateway.errors import InvalidRequest
from llava_gateway.types import SamplingParams, StructuredOutput, StructuredOutputKind

TOKEN_ID = re.compile("0|[1-9][0-9]{0,8}")
MAX_STRUCTURED_OUTPUT = 65_536
"""Characters of a schema, regular expression, grammar or list of choices: a compiler works on them, in time that grows with them."""


def _string_or_list(value: Any) -> str:
    return TAG + "string" if isinstance(value, str) else TAG + "list"


def _token_ids(bias: dict[str, float]) -> dict[str, float]:
    for key in bias:
        if not TOKEN_ID.fullmatch(key):
            raise ValueError(f"keys must be token ids, and {key[:20]!r} is none")
    return bias


ASPECT_RATIO = "an extension: how images become square, `crop`, `pad` or `resize`; default: `--image-aspect-ratio`"
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
TokenIds = Annotated[list[TokenId], Field(max_length=1 << 16, fail_fast=True)]
_NonEmpty = Annotated[str, Field(min_length=1)]
_Word = Annotated[str, Field(min_length=1, max_length=100)]
_StopString = Annotated[str, Field(min_length=1, max_length=10_000)]
_Stop = Annotated[
    Annotated[_StopString, Tag(TAG + "string")]
    | Annotated[list[_StopString], Field(min_length=1, max_length=4, fail_fast=True), Tag(TAG + "list")],
    Discriminator(_string_or_list),
]
_LogitBias = Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=4096), AfterValidator(_token_ids)]


class JsonSchema(Strict):
    name: str = Field(min_length=1, max_length=64, description="required, and of no effect")
    description: str | None = Field(None, description="ignored: the model is not shown it")
    json_schema: dict[str, Any] | None = Field(None, alias="schema", description="a JSON Schema; none: any object")
    strict: bool | None = Field(None, description="ignored: the schema is held in any case")


class TextFormat(Strict):
    type: Literal["text"]


class JsonObjectFormat(Strict):
    type: Literal["json_object"]


class JsonSchemaFormat(Strict):
    type: Literal["json_schema"]
    json_schema: JsonSchema


def _format_tag(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return TAG + kind if kind in ("text", "json_object", "json_schema") else None


_ResponseFormat = Annotated[
    Annotated[TextFormat, Tag(TAG + "text")]
    | Annotated[JsonObjectFormat, Tag(TAG + "json_object")]
    | Annotated[JsonSchemaFormat, Tag(TAG + "json_schema")],
    Discriminator(
        _format_tag, custom_error_type="format", custom_error_message="must be an object of type text, json_object or json_schema"
    ),
]


class StructuredOutputs(Strict):
    """Exactly one of these."""

    model_config = ConfigDict(extra="forbid")

    json_schema: dict[str, Any] | str | None = Field(None, alias="json", description="a JSON Schema, as an object or as JSON in a string")
    json_object: Literal[True] | None = Field(None, description="true: any JSON object")
    regex: str | None = Field(None, description="a regular expression that the whole answer matches")
    choice: Annotated[list[_NonEmpty], Field(fail_fast=True)] | None = Field(
        None, min_length=1, max_length=1000, description="the answer is one of these"
    )
    grammar: _NonEmpty | None = Field(None, description="EBNF (as xgrammar has it) or Lark, starting at `root` or `start`")

    @model_validator(mode="after")
    def _one(self) -> "StructuredOutputs":
        if len(self._given()) != 1:
            raise ValueError("must hold exactly one of json, json_object, regex, choice and grammar")
        return self

    def _given(self) -> dict[StructuredOutputKind, Any]:
        fields = self.model_dump(by_alias=True)
        return {kind: fields[kind] for kind in get_args(StructuredOutputKind) if fields[kind] is not None}

    def structured_output(self) -> StructuredOutput:
        ((kind, spec),) = self._given().items()
        param = f"structured_outputs.{kind}"
        if kind == "json_object":
            return StructuredOutput(kind, param=param)
        if kind == "json" and not isinstance(spec, str):
            spec = _json(spec, param)
        return StructuredOutput(kind, tuple(spec) if kind == "choice" else spec, param)


class StreamOptions(Strict):
    include_usage: bool | None = Field(None, description="one last chunk with the usage; the others have `usage: null`")
    continuous_usage_stats: bool | None = Field(None, description="vLLM's: with include_usage, every chunk has the usage so far")
    include_obfuscation: bool | None = Field(None, description="ignored: no chunk is padded")


class SamplingFields(RequestBody):
    """What the bodies of chat and plain completions have in common."""

    temperature: float | None = Field(None, ge=0, le=2, description="0 to 2, 0 is greedy; default 1")
    top_p: float | None = Field(
        None, gt=0, le=1, description="over 0, to 1: draw among the likeliest tokens that have this share together; default 1"
    )
    n: int | None = Field(None, ge=1, le=16, description="1 to 16 choices; at temperature 0 they are equal, and drawn once; default 1")
    stop: _Stop | None = Field(None, description="a string, or one to four, at which the answer ends, without them")
    seed: int | None = Field(None, ge=-INT64, lt=INT64, description="the same seed, request and server: the same answer")
    presence_penalty: float | None = Field(None, ge=-2, le=2, description="-2 to 2; default 0")
    frequency_penalty: float | None = Field(None, ge=-2, le=2, description="-2 to 2; default 0")
    logit_bias: _LogitBias | None = Field(None, description="-100 to 100 by token id, added to the logits")
    top_k: int | None = Field(None, ge=-1, lt=1 << 31, description="vLLM's: draw among the k likeliest tokens; 0 and -1 are off")
    min_p: float | None = Field(None, ge=0, le=1, description="vLLM's: leave out tokens less likely than this share of the likeliest")
    repetition_penalty: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="vLLM's: over 1 against repetition, taken between 0.01 and 100; default 1"
    )
    min_tokens: int | None = Field(None, ge=0, description="vLLM's: no end before so many tokens")
    stop_token_ids: TokenIds | None = Field(None, max_length=1000, description="vLLM's: tokens at which the answer ends")
    ignore_eos: bool | None = Field(None, description="vLLM's: go on to max_tokens whatever the model says")
    skip_special_tokens: bool | None = Field(None, description="vLLM's: false shows control tokens in the text; default true")
    spaces_between_special_tokens: bool | None = Field(None, description="vLLM's: what it says; default true")
    include_stop_str_in_output: bool | None = Field(None, description="vLLM's: leave the stop string in the text")
    bad_words: list[_Word] | None = Field(None, max_length=100, description="vLLM's: words that must not come")
    allowed_token_ids: TokenIds | None = Field(None, min_length=1, max_length=1 << 16, description="vLLM's: draw among these alone")
    response_format: _ResponseFormat | None = Field(None, description="text, json_object, or json_schema, whose schema is held")
    structured_outputs: StructuredOutputs | None = Field(
        None, description="vLLM's: exactly one of json, json_object, regex, choice, grammar"
    )
    stream: bool | None = Field(None, description="answer as server-sent events")
    stream_options: StreamOptions | None = Field(None, description="needs stream")

    def sampling(self, *, max_tokens: int | None, logprobs: int | None) -> SamplingParams:
        """InvalidRequest for fields that contradict each other, or a form of the answer that is too large."""
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest("stream_options needs stream: true.", param="stream_options")
        return SamplingParams(
            max_tokens=max_tokens,
            min_tokens=self.min_tokens or 0,
            n=self.n or 1,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=self.top_p or 1.0,
            top_k=max(self.top_k or 0, 0),
            min_p=self.min_p or 0.0,
            seed=self.seed,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            repetition_penalty=self.repetition_penalty or 1.0,
            logit_bias={int(token): bias for token, bias in (self.logit_bias or {}).items()},
            allowed_token_ids=None if self.allowed_token_ids is None else tuple(self.allowed_token_ids),
            bad_words=tuple(self.bad_words or ()),
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            include_stop_str_in_output=bool(self.include_stop_str_in_output),
            ignore_eos=bool(self.ignore_eos),
            skip_special_tokens=self.skip_special_tokens is not False,
            spaces_between_special_tokens=self.spaces_between_special_tokens is not False,
            structured_output=self._structured_output(),
            logprobs=logprobs,
        )

    def _structured_output(self) -> StructuredOutput | None:
        structured_output: StructuredOutput | None = None
        if isinstance(self.response_format, JsonObjectFormat):
            structured_output = StructuredOutput("json_object", param="response_format")
        elif isinstance(self.response_format, JsonSchemaFormat):
            schema = self.response_format.json_schema.json_schema
            param = "response_format.json_schema.schema"
            structured_output = StructuredOutput("json", _json(schema if schema is not None else {"type": "object"}, param), param)
        if self.structured_outputs is not None:
            if structured_output is not None:
                raise InvalidRequest("structured_outputs and response_format both ask for a form; send one.", param="structured_outputs")
            structured_output = self.structured_outputs.structured_output()
        if (
            structured_output
            and len(structured_output.spec if isinstance(structured_output.spec, str) else "".join(structured_output.spec))
            > MAX_STRUCTURED_OUTPUT
        ):
            raise InvalidRequest(
                f"{structured_output.param} is longer than {MAX_STRUCTURED_OUTPUT} characters.", param=structured_output.param
            )
        for name in ("ignore_eos", "min_tokens"):
            if structured_output and getattr(self, name):
                raise InvalidRequest(f"{name} and {structured_output.param} cannot both be held: a form ends where it ends.", param=name)
        return structured_output


def _json(schema: dict[str, Any], param: str) -> str:
    try:
        return orjson.dumps(schema).decode()
    except orjson.JSONEncodeError:
        raise InvalidRequest(f"{param} is nested too deeply.", param=param) from None


VLLM_REFUSED = {
    "chat_template_kwargs": Refused("templates take no arguments"),
    "mm_processor_kwargs": Refused("the server's image transform is used"),
    "media_io_kwargs": Refused("the server's image transform is used"),
    "truncate_prompt_tokens": Refused("a prompt that does not fit is refused, never cut"),
    "request_id": Refused("send the header x-request-id"),
    "priority": Refused("requests are served in the order they come"),
    "cache_salt": Refused("the prefix cache has no partitions"),
    "kv_transfer_params": Refused("it is for engines among themselves"),
    "vllm_xargs": Refused("no plugin of the engine is loaded"),
    "echo": Refused("the prompt is not repeated"),
    "documents": Refused("the model's template has no place for them"),
    "prompt_logprobs": Refused("log probabilities are of the answer alone"),
    "logprob_token_ids": Refused("log probabilities are of the likeliest tokens"),
    "return_tokens_as_token_ids": Refused("use the `bytes` of a token to tell tokens apart"),
    "return_token_ids": Refused("POST /tokenize gives token ids"),
    "use_beam_search": Refused("answers are sampled"),
    "guided_json": Refused('it is now structured_outputs: {"json": ...}', unless=(None,)),
    "guided_regex": Refused('it is now structured_outputs: {"regex": ...}', unless=(None,)),
    "guided_choice": Refused('it is now structured_outputs: {"choice": ...}', unless=(None,)),
    "guided_grammar": Refused('it is now structured_outputs: {"grammar": ...}', unless=(None,)),
    "guided_decoding_backend": Refused("the backend is the operator's to choose", unless=(None,)),
    "guided_whitespace_pattern": Refused("whitespace is the engine's to choose", unless=(None,)),
}
"""vLLM's fields that are refused on every path."""
