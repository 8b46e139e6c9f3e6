"""The table of token texts gives the same text as vLLM's own detokenizer, for each kind of vocabulary."""

from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import tokenizers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models
from transformers import PreTrainedTokenizerFast
from vllm import SamplingParams
from vllm.v1.engine.detokenizer import FastIncrementalDetokenizer

from llava_gateway.demo import CHECKPOINT
from llava_gateway.engine.vllm.compat.detokenizer import TableDetokenizer
from llava_gateway.tokenizer import Tokenizer

pytestmark = pytest.mark.slow

SPECIAL = ("<s>", "</s>", "<image>")


@cache
def llama() -> tuple[Any, list[str | None]]:
    """A tokenizer with Llama's decoder: a space is `▁`, a text loses its first space, and unknown characters are bytes."""
    pieces = ["<unk>", *SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁▁", "▁the", "cat", "▁é", "日", ".", "a", "s", "▁a"]
    tokenizer = tokenizers.Tokenizer(models.BPE({piece: index for index, piece in enumerate(pieces)}, [], unk_token="<unk>"))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    return _with_texts(tokenizer)


@cache
def byte_level() -> tuple[Any, list[str | None]]:
    """The demo model's tokenizer, whose tokens are bytes."""
    return _with_texts(tokenizers.Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json")))


def _with_texts(tokenizer: tokenizers.Tokenizer) -> tuple[Any, list[str | None]]:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer), Tokenizer(tokenizer.to_str()).token_texts()


def request(prompt: list[int], stop: list[str] | None = None) -> Any:
    return SimpleNamespace(request_id="r", prompt_token_ids=prompt, sampling_params=SamplingParams(stop=stop))


TOKENIZERS = {"llama": llama, "byte_level": byte_level}


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_texts_are_those_of_vllm_after_each_token(kind: str, data: st.DataObject) -> None:
    tokenizer, texts = TOKENIZERS[kind]()
    tokens = st.integers(0, len(texts) - 1) | st.integers(0, 3) | st.integers(max(0, len(texts) - 10), len(texts) - 1)
    prompt, answer = data.draw(st.lists(tokens, max_size=25)), data.draw(st.lists(tokens, max_size=40))
    with_text = [token for token in prompt if texts[token] != ""]
    assume(not with_text or texts[with_text[-1]] is not None)  # vLLM repeats a prompt that ends within a character
    own = FastIncrementalDetokenizer(tokenizer, request(prompt))
    table = TableDetokenizer(tokenizer._tokenizer, request(prompt), texts)
    for token in answer:
        own.update([token], False)
        assert table.add(token) == own.get_next_output_text(finished=False, delta=True)
    assert table.token_ids == own.token_ids


def test_most_tokens_have_a_text_and_parts_of_characters_have_none() -> None:
    tokenizer, texts = llama()
    ids = tokenizer.get_vocab()
    assert [texts[ids[piece]] for piece in ("▁the", "cat", "▁é", "日", "▁")] == [" the", "cat", " é", "日", " "]
    assert [texts[ids[piece]] for piece in SPECIAL] == ["", "", ""]
    assert [texts[ids[piece]] for piece in ("<0x41>", "<0xE6>")] == [None, None]


def test_prompt_that_ends_with_images_keeps_the_space_before_the_first_word() -> None:
    """The context of the first token is the text before the images."""
    tokenizer, texts = llama()
    ids = tokenizer.get_vocab()
    for prompt, text in (([ids["cat"], *[ids["<image>"]] * 576], " the"), ([ids["<s>"]], "the")):
        table = TableDetokenizer(tokenizer._tokenizer, request(prompt), texts)
        assert table.add(ids["▁the"]) == text


def test_prompt_that_ends_within_a_character_is_not_repeated() -> None:
    tokenizer, texts = llama()
    ids = tokenizer.get_vocab()
    table = TableDetokenizer(tokenizer._tokenizer, request([ids["cat"], ids["<0xC3>"]]), texts)
    assert table.add(ids["<0xA9>"]) + table.add(ids["▁the"]) == "é the"


def test_stop_string_is_found_across_tokens() -> None:
    tokenizer, texts = llama()
    ids = tokenizer.get_vocab()
    table = TableDetokenizer(tokenizer._tokenizer, request([ids["a"]], stop=["cat."]), texts)
    assert table.update([ids["▁the"]], False) is None
    assert table.update([ids["cat"]], False) is None
    assert table.update([ids["."]], False) == "cat."
    assert table.output_text == " the"
