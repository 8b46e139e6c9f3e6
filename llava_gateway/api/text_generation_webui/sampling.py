"""The sampling fields that prompts and chats share. Fields for samplers that the engine lacks are refused."""

import re
from typing import Annotated, ClassVar, TypeVar

from pydantic import Field

from llava_gateway.api.schema import INT64, RefusedField, RequestBody
from llava_gateway.errors import InvalidRequest
from llava_gateway.tokenizer import Tokenizer
from llava_gateway.types import SamplingParams, StructuredOutput

T = TypeVar("T")

MAX_TOKENS, TEMPERATURE, REPETITION_PENALTY = 200, 0.5, 1.1
"""The dialect's defaults, where they differ from the gateway's."""
ALL_IMAGES = (
    "an extension; true: use all images; false: use only the last image, and drop the tags of the others; default: as `--webui-images` says"
)
_TOKEN_IDS = re.compile(r"\s*[0-9]{1,9}\s*(,\s*[0-9]{1,9}\s*){0,1023}")
ZERO = (None, 0, 0.0)
ONE = (None, 1, 1.0)
EMPTY = (None, "")
"""Values that turn a refused field off."""
NO_SAMPLER = "the engine does not have this sampler"
NO_BEAMS = "answers are sampled, without beam search"

_Stop = Annotated[str, Field(min_length=1, max_length=1000)]


class SamplingFields(RequestBody):
    """The sampling fields that prompts and chats share."""

    max_new_tokens: int | None = Field(None, ge=1, description=f"the maximum number of tokens in the answer; default {MAX_TOKENS}")
    max_length: int | None = Field(None, ge=1, description="another name of max_new_tokens, which is used if both are sent")
    auto_max_new_tokens: bool | None = Field(None, description="true: as many tokens as `--default-max-tokens` and the context allow")
    min_length: int | None = Field(None, ge=0, description="the answer has at least this many tokens; default 0")
    do_sample: bool | None = Field(None, description="false: always take the likeliest token, whatever temperature is; default true")
    temperature: float | None = Field(None, ge=0, le=5, description=f"0 to 5; 0 always takes the likeliest token; default {TEMPERATURE}")
    top_p: float | None = Field(
        None,
        gt=0,
        le=1,
        description="above 0, up to 1: sample only from the likeliest tokens whose probabilities add up to this share; default 1",
    )
    min_p: float | None = Field(
        None, ge=0, le=1, description="leave out tokens whose probability is below this share of the likeliest token's; default 0"
    )
    top_k: int | None = Field(None, ge=0, lt=1 << 31, description="sample only from the k likeliest tokens; default 0, which is off")
    repetition_penalty: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="above 1 discourages repetition of tokens, those of the prompt included; "
        f"clamped to 0.01 to 100; default {REPETITION_PENALTY}",
    )
    rep_pen: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="another name of repetition_penalty, which is used if both are sent"
    )
    presence_penalty: float | None = Field(None, ge=-2, le=2, description="-2 to 2; default 0")
    frequency_penalty: float | None = Field(None, ge=-2, le=2, description="-2 to 2; default 0")
    seed: int | None = Field(
        None, ge=-1, lt=INT64, description="the same seed, request and server give the same answer; default -1, which is no seed"
    )
    stopping_strings: list[_Stop] | None = Field(
        None, max_length=64, description="up to 64 strings; the answer ends before the first of them"
    )
    ban_eos_token: bool | None = Field(
        None, description="true: generate up to max_new_tokens, even if the model ends its answer earlier; default false"
    )
    custom_token_bans: str | None = Field(
        None, max_length=20_000, description='up to 1024 ids of tokens that the answer must not have, such as `"1,2,3"`; default empty'
    )
    skip_special_tokens: bool | None = Field(None, description="false shows control tokens in the text; default true")
    grammar_string: str | None = Field(
        None,
        max_length=65_536,
        description="a grammar that the answer follows, in EBNF (GBNF's or xgrammar's) starting at `root`, or in Lark; default empty",
    )

    max_text: ClassVar = None

    refused: ClassVar = {
        "preset": RefusedField("presets are files of text-generation-webui; send their values", allowed_values=(None, "", "None")),
        "typical_p": RefusedField(NO_SAMPLER, allowed_values=ONE),
        "typical": RefusedField(NO_SAMPLER, allowed_values=ONE),
        "epsilon_cutoff": RefusedField(NO_SAMPLER, allowed_values=ZERO),
        "eta_cutoff": RefusedField(NO_SAMPLER, allowed_values=ZERO),
        "tfs": RefusedField(NO_SAMPLER, allowed_values=ONE),
        "top_a": RefusedField(NO_SAMPLER, allowed_values=ZERO),
        "mirostat_mode": RefusedField(NO_SAMPLER, allowed_values=ZERO),
        "penalty_alpha": RefusedField(NO_SAMPLER, allowed_values=ZERO),
        "no_repeat_ngram_size": RefusedField(NO_SAMPLER, allowed_values=ZERO),
        "encoder_repetition_penalty": RefusedField(NO_SAMPLER, allowed_values=ONE),
        "repetition_penalty_range": RefusedField("repetition is counted over the whole prompt and answer", allowed_values=ZERO),
        "temperature_last": RefusedField("the engine applies its samplers in a fixed order", allowed_values=(None, False)),
        "guidance_scale": RefusedField("the engine has no guidance by a second prompt", allowed_values=ONE),
        "num_beams": RefusedField(NO_BEAMS, allowed_values=ONE),
        "length_penalty": RefusedField(NO_BEAMS, allowed_values=ONE),
        "early_stopping": RefusedField(NO_BEAMS, allowed_values=(None, False)),
        "custom_stopping_strings": RefusedField("use stopping_strings", allowed_values=EMPTY),
    }
    ignored: ClassVar = {
        "mirostat_tau": "it has an effect only with mirostat_mode",
        "mirostat_eta": "it has an effect only with mirostat_mode",
        "negative_prompt": "it has an effect only with guidance_scale",
        "max_tokens_second": "answers are sent as fast as possible",
        "truncation_length": "a prompt that does not fit the model's context is refused and never truncated",
    }

    def sampling(self, tokenizer: Tokenizer) -> SamplingParams:
        """Return the gateway's sampling parameters. Raises InvalidRequest for contradictory fields and for unknown token ids."""
        max_tokens = None if self.auto_max_new_tokens else _first(self.max_new_tokens, self.max_length, MAX_TOKENS)
        min_tokens = _first(self.min_length, 0)
        if max_tokens is not None and min_tokens > max_tokens:
            raise InvalidRequest(f"min_length is {min_tokens}, which is more than the maximum of {max_tokens} tokens.", param="min_length")
        if self.grammar_string:
            for name in ("ban_eos_token", "min_length"):
                if getattr(self, name):
                    raise InvalidRequest(f"{name} cannot be combined with grammar_string, which decides where the answer ends.", param=name)
        banned = _parse_token_ids(self.custom_token_bans or "")
        tokenizer.check(banned, "custom_token_bans")
        return SamplingParams(
            max_tokens=max_tokens,
            min_tokens=min_tokens,
            temperature=0.0 if self.do_sample is False else _first(self.temperature, TEMPERATURE),
            top_p=_first(self.top_p, 1.0),
            top_k=_first(self.top_k, 0),
            min_p=_first(self.min_p, 0.0),
            seed=None if self.seed == -1 else self.seed,
            presence_penalty=_first(self.presence_penalty, 0.0),
            frequency_penalty=_first(self.frequency_penalty, 0.0),
            repetition_penalty=_first(self.repetition_penalty, self.rep_pen, REPETITION_PENALTY),
            logit_bias=dict.fromkeys(banned, -100.0),
            stop=tuple(self.stopping_strings or ()),
            ignore_eos=bool(self.ban_eos_token),
            skip_special_tokens=self.skip_special_tokens is not False,
            structured_output=StructuredOutput("grammar", self.grammar_string, "grammar_string") if self.grammar_string else None,
        )


def _first(*values: T | None) -> T:
    """Return the first value that is not None."""
    return next(value for value in values if value is not None)


def _parse_token_ids(token_bans: str) -> list[int]:
    """Return the token ids in `custom_token_bans`. Raises InvalidRequest."""
    if token_bans.strip() and not _TOKEN_IDS.fullmatch(token_bans):
        raise InvalidRequest("custom_token_bans must be at most 1024 token ids, separated by commas.", param="custom_token_bans")
    return [int(token_id) for token_id in token_bans.split(",") if token_bans.strip()]
