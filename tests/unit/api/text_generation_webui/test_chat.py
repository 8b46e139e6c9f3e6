"""Fields of text-generation-webui's requests, and images inside the texts of its prompts and chats."""

import re
import time
from typing import Any

import pytest
from helpers.documentation import rows
from helpers.server import ROOT
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from llava_gateway.api.schema import RequestBody
from llava_gateway.api.text_generation_webui.chat import ChatBody, History
from llava_gateway.api.text_generation_webui.model import ModelBody
from llava_gateway.api.text_generation_webui.prompts import MAX_IMAGES, GenerateBody, TokenCountBody, split_at_images
from llava_gateway.demo import CHECKPOINT
from llava_gateway.errors import InvalidRequest
from llava_gateway.tokenizer import Tokenizer
from llava_gateway.types import ImageUrl, SamplingParams, StructuredOutput

DOCS = (ROOT / "docs" / "text-generation-webui.md").read_text()
BODIES: list[type[BaseModel]] = [GenerateBody, ChatBody, History, TokenCountBody, ModelBody]


def test_fields_become_sampling_params() -> None:
    tokenizer = Tokenizer((CHECKPOINT / "tokenizer.json").read_text())

    def sampling(**fields: Any) -> SamplingParams:
        return GenerateBody.parse({"prompt": ""} | fields).sampling(tokenizer)

    default = SamplingParams(max_tokens=200, temperature=0.5, repetition_penalty=1.1)
    assert sampling() == default
    assert sampling(**dict.fromkeys(GenerateBody.model_fields.keys() - {"prompt"})) == default  # null is the default
    documented = {"seed": -1, "top_p": 1, "min_p": 0, "top_k": 0, "typical_p": 1.0, "tfs": 1, "custom_token_bans": ""}
    assert sampling(**documented, truncation_length=2048, preset="None", stopping_strings=[], mirostat_tau=5) == default
    given = {"min_length": 2, "top_p": 0.5, "min_p": 0.1, "top_k": 7, "presence_penalty": 1, "frequency_penalty": -1, "seed": 5}
    assert sampling(
        **given, max_length=9, rep_pen=1.5, stopping_strings=["a", "b"], custom_token_bans=" 1, 2 ", skip_special_tokens=False
    ) == SamplingParams(
        max_tokens=9,
        min_tokens=2,
        temperature=0.5,
        top_p=0.5,
        min_p=0.1,
        top_k=7,
        presence_penalty=1,
        frequency_penalty=-1,
        repetition_penalty=1.5,
        seed=5,
        stop=("a", "b"),
        logit_bias={1: -100.0, 2: -100.0},
        skip_special_tokens=False,
    )
    both = sampling(max_new_tokens=7, max_length=9, repetition_penalty=1.2, rep_pen=1.5)
    assert (both.max_tokens, both.repetition_penalty) == (7, 1.2)
    assert sampling(auto_max_new_tokens=True).max_tokens is None
    assert sampling(do_sample=False, temperature=2).temperature == 0
    assert sampling(temperature=0).temperature == 0
    assert sampling(ban_eos_token=True).ignore_eos
    assert sampling(grammar_string="g").structured_output == StructuredOutput("grammar", "g", "grammar_string")


_texts = st.lists(
    st.one_of(st.text("<img src=\"data:',>", max_size=20), st.text(max_size=5), st.just('<img src="data:a,b" alt="c">')), max_size=9
)


@given(st.lists(_texts.map("".join), min_size=1, max_size=4), st.booleans())
def test_texts_are_split_at_images_without_loss(texts: list[str], every: bool) -> None:
    named = {f"texts[{number}]": text for number, text in enumerate(texts)}
    found = re.compile(r"""<img src=["'](data:[^"'<>]*)["'][^<>]*>""")
    images = [(name, uri) for name, text in named.items() for uri in found.findall(text)]
    taken = split_at_images(named, all_images=every)
    kept = [(piece.param, piece.url) for pieces in taken.values() for piece in pieces if isinstance(piece, ImageUrl)]
    assert kept == (images if every else images[-1:])
    assert {name: "".join(piece for piece in pieces if isinstance(piece, str)) for name, pieces in taken.items()} == {
        name: found.sub("", text) for name, text in named.items()
    }


def test_images_keep_their_place_in_the_text() -> None:
    text = "a<img src=\"data:1\">b<img src='data:2' alt='x'>c<img src=\"http://x/\">"
    assert split_at_images({"p": text}, all_images=True)["p"] == [
        "a",
        ImageUrl("data:1", "p"),
        "b",
        ImageUrl("data:2", "p"),
        'c<img src="http://x/">',
    ]


@pytest.mark.parametrize("text", ['<img src="data:' * MAX_IMAGES + "x" * 8_000_000, '<img src="data:x"' * MAX_IMAGES + " " * 8_000_000])
def test_hostile_text_is_split_quickly(text: str) -> None:
    start = time.process_time()
    assert split_at_images({"p": text}, all_images=True)["p"] == [text]
    assert time.process_time() - start < 5


def test_too_many_images_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="at most 1024"):
        split_at_images({"p": "", "q": "<img src=" * (MAX_IMAGES + 1)}, all_images=False)


@pytest.mark.parametrize("model", BODIES)
def test_documentation_describes_every_field(model: type[BaseModel]) -> None:
    for row in rows(model):
        assert row in DOCS, row


def test_documentation_names_no_removed_field() -> None:
    named = set(re.findall(r"^\| `([\w-]+)` \| (?:honoured|ignored|refused) \|", DOCS, re.MULTILINE))
    declared = {row.split("`")[1] for model in BODIES for row in rows(model)}
    assert named == declared


def test_no_field_is_declared_twice() -> None:
    for model in BODIES:
        if issubclass(model, RequestBody):
            honoured = {field.alias or name for name, field in model.model_fields.items()}
            assert not honoured & model.refused.keys()
            assert not (honoured | model.refused.keys()) & model.ignored.keys()
