"""The sampling fields that chat and text completions share: OpenAI's, and vLLM's additions under vLLM's names."""

import re
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Discriminator, Field, Tag, WithJsonSchema, model_validator

from llava_gateway.api.schema import INT64, MAX_STRUCTURED_OUTPUT, TAG_PREFIX, RefusedField, RequestBody, StrictModel, to_json
from llava_gateway.errors import InvalidRequest
from llava_gateway.types import MODEL_DEFAULTS, SamplingParams, StructuredOutput, StructuredOutputKind

TOKEN_ID = re.compile("0|[1-9][0-9]{0,8}")


def _string_or_list_tag(value: Any) -> str:
    return TAG_PREFIX + "string" if isinstance(value, str) else TAG_PREFIX + "list"


def _check_length(bias: Any) -> Any:
    """Raise ValueError for too many tokens. This check runs first: each wrong number of a long object would be an error of its own."""
    if isinstance(bias, dict) and len(bias) > MAX_LOGIT_BIAS:
        raise ValueError(f"must have at most {MAX_LOGIT_BIAS} tokens")
    return bias


def _check_token_ids(bias: dict[str, float]) -> dict[str, float]:
    for key in bias:
        if not TOKEN_ID.fullmatch(key):
            raise ValueError(f"keys must be token ids, and {key[:20]!r} is not a token id")
    return bias


MODEL = "the id of a served model, as in /v1/models; another id gives 404 `model_not_found`; default: the only model, if only one is served"
NO_EFFECT = "it has no effect on the answer"
ASPECT_RATIO = "an extension: how an image becomes square: `crop`, `pad` or `resize`; default: `--image-aspect-ratio`"
TOP_P = (
    "0 to 1: sample only from the likeliest tokens whose probabilities add up to this share; 0 always takes the likeliest token; default 1"
)
MAX_STOP_STRINGS, MAX_LOGIT_BIAS = 64, 4096
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
TokenIds = Annotated[list[TokenId], Field(max_length=1 << 16, fail_fast=True)]
ModelName = Annotated[
    str,
    BeforeValidator(lambda name: "" if name is None else name),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "null"}]}),
]
_NonEmpty = Annotated[str, Field(min_length=1)]
_Word = Annotated[str, Field(min_length=1, max_length=100)]
_StopString = Annotated[str, Field(min_length=1, max_length=10_000)]
_Stop = Annotated[
    Annotated[_StopString, Tag(TAG_PREFIX + "string")]
    | Annotated[list[_StopString], Field(max_length=MAX_STOP_STRINGS, fail_fast=True), Tag(TAG_PREFIX + "list")],
    Discriminator(_string_or_list_tag),
]
_LogitBias = Annotated[
    dict[str, Annotated[float, Field(ge=-100, le=100)]],
    Field(max_length=MAX_LOGIT_BIAS),
    AfterValidator(_check_token_ids),
    BeforeValidator(_check_length),
]


class JsonSchema(StrictModel):
    name: str = Field(min_length=1, max_length=64, description="required, but has no effect")
    description: str | None = Field(None, description="ignored: the model does not see it")
    json_schema: dict[str, Any] | None = Field(None, alias="schema", description="a JSON Schema; default: any object")
    strict: bool | None = Field(None, description="ignored: the answer always follows the schema")


class TextFormat(StrictModel):
    type: Literal["text"]


class JsonObjectFormat(StrictModel):
    type: Literal["json_object"]


class JsonSchemaFormat(StrictModel):
    type: Literal["json_schema"]
    json_schema: JsonSchema


def format_tag(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return TAG_PREFIX + kind if kind in ("text", "json_object", "json_schema") else None


_ResponseFormat = Annotated[
    Annotated[TextFormat, Tag(TAG_PREFIX + "text")]
    | Annotated[JsonObjectFormat, Tag(TAG_PREFIX + "json_object")]
    | Annotated[JsonSchemaFormat, Tag(TAG_PREFIX + "json_schema")],
    Discriminator(
        format_tag, custom_error_type="format", custom_error_message="must be an object of type text, json_object or json_schema"
    ),
]


class StructuredOutputs(StrictModel):
    """vLLM's field `structured_outputs`: exactly one of the fields is set."""

    model_config = ConfigDict(extra="forbid")

    json_schema: dict[str, Any] | str | None = Field(None, alias="json", description="a JSON Schema, as an object or as JSON in a string")
    json_object: Literal[True] | None = Field(None, description="true: the answer is any JSON object")
    regex: str | None = Field(None, description="a regular expression that the whole answer matches")
    choice: Annotated[list[_NonEmpty], Field(fail_fast=True)] | None = Field(
        None, min_length=1, max_length=1000, description="the answer is one of these strings"
    )
    grammar: _NonEmpty | None = Field(None, description="a grammar in xgrammar's EBNF or in Lark; it starts at `root` or `start`")

    @model_validator(mode="after")
    def _check_one_field(self) -> "StructuredOutputs":
        if len(self._given()) != 1:
            raise ValueError("must hold exactly one of json, json_object, regex, choice and grammar")
        return self

    def _given(self) -> dict[StructuredOutputKind, Any]:
        fields = self.model_dump(by_alias=True)
        return {kind: fields[kind] for kind in get_args(StructuredOutputKind) if fields[kind] is not None}

    def structured_output(self) -> StructuredOutput:
        """Return the structure that the answer must have. Raises InvalidRequest if the schema is nested too deeply."""
        ((kind, spec),) = self._given().items()
        param = f"structured_outputs.{kind}"
        if kind == "json_object":
            return StructuredOutput(kind, param=param)
        if kind == "json" and not isinstance(spec, str):
            spec = to_json(spec, param)
        return StructuredOutput(kind, tuple(spec) if kind == "choice" else spec, param)


class StreamOptions(StrictModel):
    include_usage: bool | None = Field(None, description="send one last chunk with the usage; the other chunks have `usage: null`")
    continuous_usage_stats: bool | None = Field(None, description="vLLM's: with include_usage, every chunk has the usage so far")
    include_obfuscation: bool | None = Field(None, description="ignored: chunks are never padded")

    @property
    def asks_for_usage(self) -> bool:
        return bool(self.include_usage or self.continuous_usage_stats)


class SamplingFields(RequestBody):
    """The fields that the bodies of all generated answers share."""

    format_field: ClassVar = ""
    """OpenAI's own field for a structured output."""

    model: ModelName = Field("", description=MODEL)

    temperature: float | None = Field(None, ge=0, le=2, description="0 to 2; 0 always takes the likeliest token; default 1")
    top_p: float | None = Field(None, ge=0, le=1, description=TOP_P)
    stop: _Stop | None = Field(
        None, description=f"one string, or a list of up to {MAX_STOP_STRINGS}; the answer ends before the first of them"
    )
    seed: int | None = Field(None, ge=-INT64, lt=INT64, description="the same seed, request and server give the same answer")
    presence_penalty: float | None = Field(None, ge=-2, le=2, description="-2 to 2; default 0")
    frequency_penalty: float | None = Field(None, ge=-2, le=2, description="-2 to 2; default 0")
    logit_bias: _LogitBias | None = Field(
        None, description="an object from token ids to numbers from -100 to 100, which are added to the logits"
    )
    top_k: int | None = Field(None, ge=-1, lt=1 << 31, description="vLLM's: sample only from the k likeliest tokens; 0 and -1 are off")
    min_p: float | None = Field(
        None, ge=0, le=1, description="vLLM's: leave out tokens whose probability is below this share of the likeliest token's"
    )
    repetition_penalty: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="vLLM's: above 1 discourages repetition; clamped to 0.01 to 100; default 1"
    )
    min_tokens: int | None = Field(None, ge=0, description="vLLM's: the answer has at least this many tokens")
    stop_token_ids: TokenIds | None = Field(None, max_length=1000, description="vLLM's: ids of tokens that end the answer")
    ignore_eos: bool | None = Field(None, description="vLLM's: generate up to max_tokens, even if the model ends its answer earlier")
    skip_special_tokens: bool | None = Field(None, description="vLLM's: false shows control tokens in the text; default true")
    spaces_between_special_tokens: bool | None = Field(
        None, description="vLLM's: put spaces between control tokens that the text shows; default true"
    )
    include_stop_str_in_output: bool | None = Field(None, description="vLLM's: keep the stop string in the text")
    bad_words: list[_Word] | None = Field(None, max_length=100, description="vLLM's: words that the answer must not contain")
    allowed_token_ids: TokenIds | None = Field(None, min_length=1, max_length=1 << 16, description="vLLM's: sample only from these tokens")
    structured_outputs: StructuredOutputs | None = Field(
        None, description="vLLM's: exactly one of json, json_object, regex, choice, grammar"
    )
    cache_salt: str | None = Field(
        None,
        min_length=1,
        max_length=128,
        description="vLLM's: the engine shares its caches only between prompts of the same salt",
    )
    stream: bool | None = Field(None, description="send the answer as server-sent events")

    def sampling_params(
        self,
        *,
        max_tokens: int | None,
        logprobs: int | None,
        n: int | None = None,
        prompt_logprobs: int | None = None,
        return_token_ids: bool = False,
    ) -> SamplingParams:
        """Return the gateway's sampling parameters.

        `logprobs`: the number of likeliest tokens to return at each position, or None for no log probabilities. The other parameters: as in
        `SamplingParams`. Raises InvalidRequest for contradictory fields and for a schema or grammar that is too long.
        """
        greedy = self.top_p == 0
        return SamplingParams(
            max_tokens=max_tokens,
            lower_max_tokens_to_fit=True,
            min_tokens=self.min_tokens or 0,
            n=n or 1,
            temperature=0.0 if greedy else 1.0 if self.temperature is None else self.temperature,
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
            unset=frozenset(name for name in MODEL_DEFAULTS if getattr(self, name) is None and not (greedy and name == "temperature")),
            prompt_logprobs=prompt_logprobs,
            include_stop_token=return_token_ids,
            return_token_ids=return_token_ids,
        )

    def _structured_output(self) -> StructuredOutput | None:
        structured_output = self._answer_format()
        if self.structured_outputs is not None:
            if structured_output is not None:
                raise InvalidRequest(
                    f"structured_outputs and {self.format_field} both constrain the answer; send only one of them.",
                    param="structured_outputs",
                )
            structured_output = self.structured_outputs.structured_output()
        if structured_output is None:
            return None
        spec, param = structured_output.spec, structured_output.param
        if len(spec if isinstance(spec, str) else "".join(spec)) > MAX_STRUCTURED_OUTPUT:
            raise InvalidRequest(f"{param} is longer than {MAX_STRUCTURED_OUTPUT} characters.", param=param)
        for name in ("ignore_eos", "min_tokens"):
            if getattr(self, name):
                raise InvalidRequest(f"{name} cannot be combined with {param}, which decides where the answer ends.", param=name)
        return structured_output

    def _answer_format(self) -> StructuredOutput | None:
        """Return the structure that `format_field` asks for. None for plain text. An endpoint that has this field overrides the method."""
        return None


class CompletionFields(SamplingFields):
    """The fields that the bodies of chat and text completions share."""

    format_field: ClassVar = "response_format"

    n: int | None = Field(
        None,
        ge=1,
        le=128,
        description="1 to 128 choices; at temperature 0 all choices are equal, and only one is generated; default 1",
    )
    response_format: _ResponseFormat | None = Field(
        None, description="text, json_object or json_schema; the answer always follows the schema"
    )
    prompt_logprobs: int | None = Field(
        None, ge=0, le=20, description="vLLM's: return the log probabilities of the prompt's tokens and of 0 to 20 others; not with stream"
    )
    return_token_ids: bool | None = Field(None, description="vLLM's: return the token ids of the prompt and of the answer")
    return_tokens_as_token_ids: bool | None = Field(
        None, description="vLLM's: show the tokens of log probabilities as `token_id:` and a number"
    )
    stream_options: StreamOptions | None = Field(None, description="only with stream")

    def sampling(self, *, max_tokens: int | None, logprobs: int | None) -> SamplingParams:
        """Return the gateway's sampling parameters. `logprobs` and errors: as for `sampling_params`."""
        if self.stream_options and not self.stream and self.stream_options.asks_for_usage:
            raise InvalidRequest("stream_options requires stream: true.", param="stream_options")
        if self.prompt_logprobs is not None and self.stream:
            raise InvalidRequest("prompt_logprobs cannot be streamed; leave out stream.", param="prompt_logprobs")
        return self.sampling_params(
            max_tokens=max_tokens,
            logprobs=logprobs,
            n=self.n,
            prompt_logprobs=self.prompt_logprobs,
            return_token_ids=bool(self.return_token_ids),
        )

    def _answer_format(self) -> StructuredOutput | None:
        if isinstance(self.response_format, JsonObjectFormat):
            return StructuredOutput("json_object", param="response_format")
        if isinstance(self.response_format, JsonSchemaFormat):
            return schema_format(self.response_format.json_schema.json_schema, "response_format.json_schema.schema")
        return None


def schema_format(schema: dict[str, Any] | None, param: str) -> StructuredOutput:
    """Return the structure for a JSON Schema, or any object without one. Raises InvalidRequest if the schema is nested too deeply."""
    return StructuredOutput("json_object", param=param) if schema is None else StructuredOutput("json", to_json(schema, param), param)


IMAGE_TRANSFORM = "the server uses its own image transform"
VLLM_REFUSED = {
    "mm_processor_kwargs": RefusedField(IMAGE_TRANSFORM),
    "media_io_kwargs": RefusedField(IMAGE_TRANSFORM),
    "truncate_prompt_tokens": RefusedField("a prompt that does not fit is refused and never truncated"),
    "request_id": RefusedField("send the header x-request-id"),
    "priority": RefusedField("requests are served in their order of arrival"),
    "kv_transfer_params": RefusedField("it is for transfers between engines"),
    "vllm_xargs": RefusedField("the engine has no plugins"),
    "documents": RefusedField("the chat template does not use documents"),
    "logprob_token_ids": RefusedField("only the likeliest tokens have log probabilities"),
    "use_beam_search": RefusedField("answers are sampled, without beam search"),
    "guided_json": RefusedField('send structured_outputs: {"json": ...}', allowed_values=(None,)),
    "guided_regex": RefusedField('send structured_outputs: {"regex": ...}', allowed_values=(None,)),
    "guided_choice": RefusedField('send structured_outputs: {"choice": ...}', allowed_values=(None,)),
    "guided_grammar": RefusedField('send structured_outputs: {"grammar": ...}', allowed_values=(None,)),
    "guided_whitespace_pattern": RefusedField("the engine chooses the whitespace", allowed_values=(None,)),
}
"""vLLM's fields that every endpoint refuses."""
VLLM_IGNORED = {"guided_decoding_backend": "the operator chooses the backend"}
"""vLLM's fields that every endpoint ignores."""
