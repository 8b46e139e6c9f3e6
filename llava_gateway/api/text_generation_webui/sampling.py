"""How an answer is drawn: the fields that prompts and chats share, and the samplers that the engine lacks."""

import re
from typing import Annotated, ClassVar, TypeVar

from pydantic import Field

from llava_gateway.api.schema import INT64, Refused, RequestBody
from llava_gateway.errors import InvalidRequest
from llava_gateway.tokenizer import Tokenizer
from llava_gateway.types import SamplingParams, StructuredOutput

T = TypeVar("T")

MAX_TOKENS = 200
"""The dialect's defaults, where they are not the core's."""
TEMPERATURE = 0.5
REPETITION_PENALTY = 1.1
ALL_IMAGES = "an extension: embed all pictures, not only the last; default false, and the tags of the earlier ones are left out"
BANS = re.compile(r"\s*[0-9]{1,9}\s*(,\s*[0-9]{1,9}\s*){0,1023}")
OFF = (None, 0, 0.0)
ONE = (None, 1, 1.0)
EMPTY = (None, "")
LACKING = "the engine has no such sampler"
NO_BEAMS = "answers are sampled, there are no beams"

_Stop = Annotated[str, Field(min_length=1, max_length=1000)]


class SamplingFields(RequestBody):
    max_new_tokens: int | None = Field(None, ge=1, description=f"most tokens of the answer; default {MAX_TOKENS}")
    max_length: int | None = Field(None, ge=1, description="the same; max_new_tokens wins")
    auto_max_new_tokens: bool | None = Field(None, description="true: as many tokens as `--default-max-tokens` and the context allow")
    min_length: int | None = Field(None, ge=0, description="no end before so many tokens of the answer; default 0")
    do_sample: bool | None = Field(None, description="false: greedy, whatever the temperature; default true")
    temperature: float | None = Field(None, ge=0, le=5, description=f"0 to 5, 0 is greedy; default {TEMPERATURE}")
    top_p: float | None = Field(
        None, gt=0, le=1, description="over 0, to 1: draw among the likeliest tokens that have this share together; default 1"
    )
    min_p: float | None = Field(None, ge=0, le=1, description="leave out tokens less likely than this share of the likeliest; default 0")
    top_k: int | None = Field(None, ge=0, lt=1 << 31, description="draw among the k likeliest tokens; default 0, off")
    repetition_penalty: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description=f"over 1 against repetition, of the prompt's tokens as well, taken between 0.01 and 100; default {REPETITION_PENALTY}",
    )
    rep_pen: float | None = Field(None, gt=0, allow_inf_nan=False, description="the same; repetition_penalty wins")
    presence_penalty: float | None = Field(None, ge=-2, le=2, description="-2 to 2; default 0")
    frequency_penalty: float | None = Field(None, ge=-2, le=2, description="-2 to 2; default 0")
    seed: int | None = Field(None, ge=-1, lt=INT64, description="the same seed, request and server: the same answer; default -1, none")
    stopping_strings: list[_Stop] | None = Field(None, max_length=64, description="up to 64 strings at which the answer ends, without them")
    ban_eos_token: bool | None = Field(None, description="go on to max_new_tokens whatever the model says; default false")
    custom_token_bans: str | None = Field(
        None, max_length=20_000, description='up to 1024 token ids that must not come, as in `"1,2,3"`; default empty'
    )
    skip_special_tokens: bool | None = Field(None, description="false shows control tokens in the text; default true")
    grammar_string: str | None = Field(
        None,
        max_length=65_536,
        description="a form that the answer has: EBNF (as GBNF and xgrammar have it) from `root` on, or Lark; default empty",
    )

    max_text: ClassVar = None

    refused: ClassVar = {
        "preset": Refused("presets are files of the original's; send their values", unless=(None, "", "None")),
        "typical_p": Refused(LACKING, unless=ONE),
        "typical": Refused(LACKING, unless=ONE),
        "epsilon_cutoff": Refused(LACKING, unless=OFF),
        "eta_cutoff": Refused(LACKING, unless=OFF),
        "tfs": Refused(LACKING, unless=ONE),
        "top_a": Refused(LACKING, unless=OFF),
        "mirostat_mode": Refused(LACKING, unless=OFF),
        "penalty_alpha": Refused(LACKING, unless=OFF),
        "no_repeat_ngram_size": Refused(LACKING, unless=OFF),
        "encoder_repetition_penalty": Refused(LACKING, unless=ONE),
        "repetition_penalty_range": Refused("repetition is counted over everything", unless=OFF),
        "temperature_last": Refused("the engine has one order of samplers", unless=(None, False)),
        "guidance_scale": Refused("nothing is guided by a second prompt", unless=ONE),
        "num_beams": Refused(NO_BEAMS, unless=ONE),
        "length_penalty": Refused(NO_BEAMS, unless=ONE),
        "early_stopping": Refused(NO_BEAMS, unless=(None, False)),
        "custom_stopping_strings": Refused("send stopping_strings", unless=EMPTY),
    }
    ignored: ClassVar = {
        "mirostat_tau": "it goes with mirostat_mode",
        "mirostat_eta": "it goes with mirostat_mode",
        "negative_prompt": "it goes with guidance_scale",
        "max_tokens_second": "answers come as fast as they can",
        "truncation_length": "a prompt that does not fit the model's context is refused, never cut",
    }

    def sampling(self, tokenizer: Tokenizer) -> SamplingParams:
        """InvalidRequest for fields that contradict each other, and for tokens that are not the model's."""
        max_tokens = None if self.auto_max_new_tokens else _first(self.max_new_tokens, self.max_length, MAX_TOKENS)
        min_tokens = _first(self.min_length, 0)
        if max_tokens is not None and min_tokens > max_tokens:
            raise InvalidRequest(f"min_length is {min_tokens}, more than the {max_tokens} tokens of the answer.", param="min_length")
        if self.grammar_string:
            for name in ("ban_eos_token", "min_length"):
                if getattr(self, name):
                    raise InvalidRequest(f"{name} and grammar_string cannot both be held: a form ends where it ends.", param=name)
        bans = _token_ids(self.custom_token_bans or "")
        tokenizer.check(bans, "custom_token_bans")
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
            logit_bias=dict.fromkeys(bans, -100.0),
            stop=tuple(self.stopping_strings or ()),
            ignore_eos=bool(self.ban_eos_token),
            skip_special_tokens=self.skip_special_tokens is not False,
            structured_output=StructuredOutput("grammar", self.grammar_string, "grammar_string") if self.grammar_string else None,
        )


def _first(*values: T | None) -> T:
    """The first that is given; the last is a default."""
    return next(value for value in values if value is not None)


def _token_ids(bans: str) -> list[int]:
    if bans.strip() and not BANS.fullmatch(bans):
        raise InvalidRequest("custom_token_bans must be token ids, at most 1024, with commas between them.", param="custom_token_bans")
    return [int(token_id) for token_id in bans.split(",") if bans.strip()]
