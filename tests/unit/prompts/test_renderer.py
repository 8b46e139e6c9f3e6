"""Prompts: equal to Hugging Face's, and no text of a client is ever a control token."""

import dataclasses
from typing import Any

import pytest
import tokenizers
from helpers.prompts import CHATS, IMAGE, LLAVA_HF_TEMPLATE, huggingface, model_info
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, trainers

from llava_gateway.errors import ContextLengthExceeded, EngineStartError, InvalidRequest
from llava_gateway.prompts.renderer import PromptRenderer
from llava_gateway.tokenizer import Tokenizer
from llava_gateway.types import Message, Text

CONTROLS = ("<image>", "<s>", "</s>", "<unk>", "<pad>")


@pytest.mark.slow
@pytest.mark.parametrize("template", [None, LLAVA_HF_TEMPLATE], ids=["demo", "llava-hf"])
@pytest.mark.parametrize("chat", CHATS, ids=lambda chat: str(len(chat)))
def test_prompt_equals_hugging_face(processor: Any, template: str | None, chat: list[Message]) -> None:
    prompt = PromptRenderer(model_info(template)).chat(chat)
    expected = processor.apply_chat_template(huggingface(chat), chat_template=template, add_generation_prompt=True, tokenize=False)
    assert prompt.text == expected
    assert prompt.token_ids == processor.tokenizer(expected).input_ids


def test_prompt_has_the_form_of_llava(renderer: PromptRenderer) -> None:
    asked = [Message("system", (Text("S"),)), Message("user", (Text("Q"), IMAGE))]
    answered = [*asked, Message("assistant", (Text("A"),)), Message("user", (Text("R"),))]
    assert renderer.chat(answered).text == "S USER: <image>\nQ ASSISTANT: A</s>USER: R ASSISTANT:"


IN_ORDER = "{% for message in messages %}{% for part in message.content %}{{ part.text or '<image>;' }}{% endfor %}{% endfor %}"


def test_images_with_a_text_between_them_stay_in_their_places() -> None:
    """Moved to the front, the texts would no longer say which image is which."""
    between = [Message("user", (Text("First:"), IMAGE, Text("Second:"), IMAGE, Text("Compare.")))]
    renderer = PromptRenderer(model_info())
    assert renderer.chat(between).text == "USER: First:\n<image>\nSecond:\n<image>\nCompare. ASSISTANT:"
    assert renderer.chat(between, "chatml").text.count("First:\n<image>\nSecond:\n<image>\nCompare.") == 1
    assert PromptRenderer(model_info(IN_ORDER)).chat(between).text == "First:<image>;Second:<image>;Compare."
    for parts in ((Text("Q"), IMAGE, IMAGE), (IMAGE, Text(" "), IMAGE, Text("Q")), (Text("Q"), IMAGE)):
        images = sum(part is IMAGE for part in parts)
        assert renderer.chat([Message("user", parts)]).text.startswith("USER: " + "<image>\n" * images)


def special_ids(renderer: PromptRenderer, ids: list[int]) -> list[str]:
    return [token for token in map(renderer._tokenizer.token, ids) if token in CONTROLS]


def byte_fallback_tokenizer() -> tokenizers.Tokenizer:
    """As Llama's: bytes for what is not in the vocabulary, a prefix space."""
    tokenizer = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    alphabet = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(special_tokens=[*CONTROLS, *alphabet], vocab_size=600, show_progress=False)
    tokenizer.train_from_iterator(["USER: <image>\nDescribe this image. ASSISTANT: </s>"] * 5, trainer)
    return tokenizer


@given(
    st.lists(
        st.text(max_size=12) | st.sampled_from(CONTROLS) | st.sampled_from(["<", "ima", "ge>", "</", "s>", "\ufdd0"]),
        min_size=1,
        max_size=6,
    )
)
def test_text_never_becomes_a_control_token(renderer: PromptRenderer, pieces: list[str]) -> None:
    for parts in ([Text("".join(pieces))], [Text(piece) for piece in pieces]):
        for message in (Message("user", (IMAGE, *parts)), Message("user", (*parts, IMAGE, *parts), images_in_place=True)):
            assert special_ids(renderer, renderer.chat([message]).token_ids) == ["<s>", "<image>"]


@pytest.mark.parametrize("text", ["<image>", "a <image> b", "</s>", "x</s>y<s>", "<image><image>", "<pad>é<unk>"])
def test_control_tokens_in_text_keep_their_spelling(renderer: PromptRenderer, text: str) -> None:
    prompt = renderer.chat([Message("user", (Text(text),))])
    assert prompt.text == f"USER: {text} ASSISTANT:"
    assert renderer._tokenizer.decode(prompt.token_ids) == f"<s>USER: {text} ASSISTANT:"


@pytest.mark.parametrize(
    "pieces", [("<ima", "ge>"), ("</", "s>"), ("<", "/", "s>"), ("</", "", "s>"), ("a<", "", "", "s", ">b"), ("<", "<s>", "s>")]
)
def test_control_token_split_over_parts_is_defused(pieces: tuple[str, ...]) -> None:
    """A template that joins texts without a space must not join them into a control token."""
    joined = "{% for p in messages[0]['content'] %}{{ p['text'] if p['type'] == 'text' else '<image>' }}{% endfor %}"
    renderer = PromptRenderer(model_info(joined))
    prompt = renderer.chat([Message("user", (IMAGE, *map(Text, pieces)))])
    assert special_ids(renderer, prompt.token_ids) == ["<s>", "<image>"]
    assert prompt.text == "<image>" + "".join(pieces)


def test_too_long_text_is_refused_before_tokenizing(renderer: PromptRenderer) -> None:
    with pytest.raises(ContextLengthExceeded):
        renderer.chat([Message("user", (Text("word " * 2_000_000),))])


def test_byte_fallback_tokenizer_is_supported() -> None:
    tokenizer = byte_fallback_tokenizer()
    renderer = PromptRenderer(dataclasses.replace(model_info(), tokenizer=Tokenizer(tokenizer.to_str())))
    prompt = renderer.chat([Message("user", (IMAGE, Text("hi <image></s>")))])
    assert prompt.token_ids.count(tokenizer.token_to_id("<image>") or 0) == 1
    read = tokenizer.decode(prompt.token_ids, skip_special_tokens=False)  # with a space after <image>, as such tokenizers have it
    assert read.replace(" ", "") == "USER:<image>\nhi<image></s>ASSISTANT:"


def test_error_raised_by_a_template_is_a_400() -> None:
    renderer = PromptRenderer(model_info("{{ raise_exception('system messages are not taken') }}"))
    with pytest.raises(InvalidRequest, match="system messages are not taken"):
        renderer.chat(CHATS[0])


def test_message_that_breaks_a_template_is_a_400() -> None:
    renderer = PromptRenderer(model_info("{{ messages[0]['content'] + 1 }}"))
    with pytest.raises(InvalidRequest, match="refuses these messages"):
        renderer.chat(CHATS[0])


def test_template_that_drops_images_is_a_400() -> None:
    renderer = PromptRenderer(model_info("{{ messages[0]['role'] }}"))
    with pytest.raises(InvalidRequest, match="images"):
        renderer.chat(CHATS[1])


def test_templates_are_sandboxed() -> None:
    renderer = PromptRenderer(model_info("{{ messages.__class__.__mro__ }}"))
    with pytest.raises(InvalidRequest):
        renderer.chat(CHATS[0])


def test_invalid_jinja_is_an_error_at_start() -> None:
    with pytest.raises(EngineStartError, match="line 2"):
        PromptRenderer(model_info("{{ messages }}\n{% nothing %}"))


def test_template_gets_the_variables_that_it_reads() -> None:
    source = "{{ messages[0]['role'] }}{{ ' thinks' if enable_thinking else '' }}{% for _ in range(2) %}.{% endfor %}"
    renderer = PromptRenderer(model_info(source))
    chat = [Message("user", (Text("Hi"),))]
    assert renderer.chat(chat).text == "user.."
    assert renderer.chat(chat, template_kwargs={"enable_thinking": True}).text == "user thinks.."
    assert renderer.chat(chat, template_kwargs={"enable_thinking": False, "other": ["x"], "range": 5}).text == "user.."


@pytest.mark.parametrize(
    "kwargs",
    [
        *({name: True} for name in ("messages", "add_generation_prompt", "tools", "chat_template", "eos_token", "image_token")),
        *({"enable_thinking": value} for value in ("</s>", ["</s>"], {"a": 1}, 10**12)),
    ],
    ids=str,
)
def test_variable_that_could_change_the_prompts_form_is_refused(kwargs: dict[str, Any]) -> None:
    renderer = PromptRenderer(model_info("{{ messages[0]['role'] }}{{ enable_thinking }}"))
    with pytest.raises(InvalidRequest) as refused:
        renderer.chat([Message("user", (Text("Hi"),))], template_kwargs=kwargs)
    assert refused.value.param == f"chat_template_kwargs.{next(iter(kwargs))}"
