"""Images stand between `<im_start>` and `<im_end>` if, and only if, the model was trained so."""

import asyncio
import dataclasses
import logging

import pytest
import tokenizers
from helpers.prompts import ANSWERED, ASKED, GOLDEN, IMAGE, model_info
from helpers.silent_engine import SilentEngine
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_gateway.app import create_app
from llava_gateway.errors import EngineStartError, InvalidRequest
from llava_gateway.model_info import ModelInfo
from llava_gateway.prompts.renderer import PromptRenderer
from llava_gateway.prompts.templates import BUILT_IN, Template
from llava_gateway.settings import ImageStartEnd, Settings
from llava_gateway.tokenizer import Tokenizer
from llava_gateway.types import CompletionRequest, Message, Text

WRAPPED = "<im_start><image><im_end>"
BOTH = ("<im_start>", "<im_end>")


def model(record: bool | None = True, template: str | None = None, *, added: tuple[str, ...] = BOTH, special: bool = True) -> ModelInfo:
    """Return the demo model with further tokens. `record`: of its checkpoint. `special`: whether the tokens are marked as such."""
    info = model_info(template)
    tokenizer = tokenizers.Tokenizer.from_str(info.tokenizer.to_json())
    tokenizer.add_tokens([tokenizers.AddedToken(token, special=special, normalized=False) for token in added])
    return dataclasses.replace(info, tokenizer=Tokenizer(tokenizer.to_str()), image_start_end=record)


def completion(prompt: str | tuple[int, ...], images: int) -> CompletionRequest:
    return CompletionRequest(model="m", prompt=prompt, images=(IMAGE,) * images)


def special_tokens(info: ModelInfo, token_ids: list[int]) -> list[str]:
    return [text for text in map(info.tokenizer.token, token_ids) if text in ("<image>", "<s>", "</s>", *BOTH)]


RENDERER = PromptRenderer(model())


@pytest.mark.parametrize("name", GOLDEN)
def test_every_template_wraps_images(name: str) -> None:
    for chat, plain in zip((ASKED, ANSWERED), GOLDEN[name], strict=False):
        prompt = RENDERER.chat(chat, name)
        assert prompt.text == plain.replace("<image>", WRAPPED)
        assert special_tokens(model(), prompt.token_ids).count("<im_start>") == 1


def test_template_of_the_operator_wraps_images() -> None:
    jinja = "{% for p in messages[0]['content'] %}{{ p['text'] if p['type'] == 'text' else image_token }}{% endfor %}"
    assert PromptRenderer(model(), Template(jinja)).chat(ASKED).text == f"What?{WRAPPED}"


def test_image_in_the_middle_of_a_text_is_wrapped() -> None:
    chat = [Message("user", (Text("Is "), IMAGE, Text(" like "), IMAGE, Text("?")), images_in_place=True)]
    for name in (None, *BUILT_IN):
        assert f"Is {WRAPPED} like {WRAPPED}?" in RENDERER.chat(chat, name).text


def test_prompt_that_the_client_writes_is_wrapped() -> None:
    prompt = RENDERER.render(completion("<image>A <image>\n<image>", 3))
    assert prompt.text == f"{WRAPPED}A {WRAPPED}\n{WRAPPED}"
    assert special_tokens(model(), prompt.token_ids) == ["<s>", *(("<im_start>", "<image>", "<im_end>") * 3)]


@pytest.mark.parametrize(
    "prompt", [f"USER: {WRAPPED}\nHi", "<im_start>\n<image>\n<im_end>", "<im_start><image><image><im_end> and <im_start><image><im_end>"]
)
def test_image_that_the_client_has_wrapped_is_not_wrapped_twice(prompt: str) -> None:
    assert RENDERER.render(completion(prompt, prompt.count("<image>"))).text == prompt


def test_stray_token_does_not_keep_images_from_being_wrapped() -> None:
    prompt = RENDERER.render(completion("What is <im_end> and <im_start>? <image> <im_start> <image>", 2))
    assert prompt.text == f"What is <im_end> and <im_start>? {WRAPPED} <im_start> {WRAPPED}"


def test_token_ids_stay_as_the_client_sent_them() -> None:
    token_ids = tuple(model().tokenizer.encode("<image>Hello", add_special_tokens=True).ids)
    assert RENDERER.render(completion(token_ids, 1)).token_ids == list(token_ids)


@pytest.mark.parametrize("special", [True, False])
@settings(max_examples=40)
@given(st.lists(st.sampled_from(["<im_start>", "<im_end>", "<image>", "<im_", "start>", "<", "x"]), min_size=1, max_size=8))
def test_text_of_a_chat_never_becomes_one_of_the_tokens(special: bool, pieces: list[str]) -> None:
    info = model(special=special)
    renderer = PromptRenderer(info)
    for parts in ([Text("".join(pieces))], [Text(piece) for piece in pieces]):
        for message in (Message("user", (IMAGE, *parts)), Message("user", (*parts, IMAGE, *parts), images_in_place=True)):
            assert special_tokens(info, renderer.chat([message]).token_ids) == ["<s>", "<im_start>", "<image>", "<im_end>"]


def test_template_of_an_earlier_conversion_stands_for_the_record(caplog: pytest.LogCaptureFixture) -> None:
    """Its own template writes the tokens. The named templates do not."""
    own = "{% for part in messages[0]['content'] if part['type'] == 'image' %}{{ '<im_start><image><im_end>' }}{% endfor %}"
    renderer = PromptRenderer(model(None, own))
    assert renderer.chat(ASKED).text == WRAPPED
    assert renderer.chat(ASKED, "plain").text == f"{WRAPPED}\nWhat?\n"
    assert not caplog.records


def test_checkpoint_that_does_not_say_gets_the_tokens_and_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert WRAPPED in PromptRenderer(model(None)).chat(ASKED).text
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "--image-start-end" in record.getMessage()


@pytest.mark.parametrize(
    ("info", "setting"),
    [
        (model(False), "auto"),
        (model(True), "off"),
        (model(None), "off"),
        (model(None, added=("<im_start>",)), "auto"),
        (model(False, added=()), "auto"),
        (model_info(), "auto"),
    ],
)
def test_model_that_was_trained_without_the_tokens_does_not_get_them(
    info: ModelInfo, setting: ImageStartEnd, caplog: pytest.LogCaptureFixture
) -> None:
    assert PromptRenderer(info, None, setting).chat(ASKED, "plain").text == "<image>\nWhat?\n"
    assert not caplog.records


def test_flag_overrules_the_checkpoint() -> None:
    assert PromptRenderer(model(False), None, "on").chat(ASKED, "plain").text == f"{WRAPPED}\nWhat?\n"


@pytest.mark.parametrize(("record", "setting", "named"), [(None, "on", "--image-start-end"), (True, "auto", "mm_use_im_start_end")])
def test_tokenizer_without_the_tokens_is_refused(record: bool | None, setting: ImageStartEnd, named: str) -> None:
    with pytest.raises(EngineStartError, match=named) as refused:
        PromptRenderer(model(record, added=("<im_start>",)), None, setting)
    assert "\n" not in str(refused.value)


def test_setting_reaches_the_model() -> None:
    async def start() -> None:
        gateway = create_app(Settings(model="m", image_start_end="on"), engine=SilentEngine).state.gateway
        try:
            await gateway.start()
        finally:
            await gateway.stop()

    with pytest.raises(EngineStartError, match="--image-start-end"):
        asyncio.run(start())


def test_number_of_placeholders_is_checked_as_without_the_tokens() -> None:
    with pytest.raises(InvalidRequest, match="1 image placeholders, and there are 2 images"):
        RENDERER.render(completion(WRAPPED, 2))
