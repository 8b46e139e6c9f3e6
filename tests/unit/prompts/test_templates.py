"""Built-in templates: Hugging Face's where that has one, elsewhere LLaVA's and SambaStudio's forms, written out by hand."""

import re
from pathlib import Path
from typing import Any

import pytest
from helpers.prompts import ANSWERED, ASKED, CHATS, GOLDEN, IMAGE, LLAVA_HF_TEMPLATE, SYSTEM, huggingface, model_info

from llava_gateway.errors import InvalidRequest
from llava_gateway.prompts.renderer import PromptRenderer
from llava_gateway.prompts.templates import BUILT_IN, aliases, built_in, chosen
from llava_gateway.settings import SettingsError
from llava_gateway.types import Message, Role, Text


@pytest.mark.slow
@pytest.mark.parametrize("chat", CHATS)
def test_llava_hf_template_equals_hugging_face(renderer: PromptRenderer, processor: Any, chat: list[Message]) -> None:
    expected = processor.apply_chat_template(huggingface(chat), chat_template=LLAVA_HF_TEMPLATE, add_generation_prompt=True)
    assert renderer.chat(chat, "llava-hf").text == expected


@pytest.mark.parametrize("name", GOLDEN)
def test_built_in_template_has_its_documented_form(renderer: PromptRenderer, name: str) -> None:
    assert tuple(renderer.chat(chat, name).text for chat in (ASKED, ANSWERED, SYSTEM)) == GOLDEN[name]


@pytest.mark.parametrize("name", [None, *BUILT_IN])
def test_image_of_any_role_is_rendered_in_its_message(renderer: PromptRenderer, name: str | None) -> None:
    names: dict[str, Role] = {"A": "system", "B": "assistant", "C": "user", "D": "system"}
    chat = [Message(role, (Text(f"{letter}1"), IMAGE, Text(f"{letter}2"))) for letter, role in names.items()]
    found = re.findall(r"[ABCD][12]|<image>", renderer.chat(chat, name).text)
    assert [sorted(found[start : start + 3]) for start in range(0, len(found), 3)] == [
        ["<image>", f"{each}1", f"{each}2"] for each in names
    ]


def test_continued_message_may_have_no_image(renderer: PromptRenderer) -> None:
    with pytest.raises(InvalidRequest, match="no images"):
        renderer.chat([*ASKED, Message("assistant", (IMAGE, Text("The top left")))], continue_last=True)


def test_every_template_is_tested() -> None:
    assert set(BUILT_IN) == set(GOLDEN)


def test_server_template_replaces_the_models_own() -> None:
    renderer = PromptRenderer(model_info(), chosen("plain"))
    assert renderer.chat(ASKED).text == "<image>\nWhat?\n"
    assert renderer.chat(ASKED, "llava-hf").text == "USER: <image>\nWhat? ASSISTANT:"


def test_template_stop_strings_end_the_answer(renderer: PromptRenderer) -> None:
    assert renderer.chat(ASKED, "llava-sn").stop == renderer.chat(ASKED, "llava_v0").stop == ("###",)
    assert renderer.chat(ASKED, "llava-interleave").stop == ("<|im_end|>",)
    assert renderer.chat(ASKED).stop == ()


def test_last_message_is_continued(renderer: PromptRenderer) -> None:
    begun = [*ASKED, Message("assistant", (Text("The top left"),))]
    assert renderer.chat(begun, "llava-hf", continue_last=True).text == "USER: <image>\nWhat? ASSISTANT: The top left"
    assert renderer.chat(begun, "chatml", continue_last=True).text.endswith("<|im_start|>assistant\nThe top left")
    assert renderer.chat([*ASKED, Message("assistant", ())], "llava-hf", continue_last=True).text.endswith("ASSISTANT:")


def test_operator_may_choose_a_template_by_name_or_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("{{ 'mine' }}")
    assert chosen(str(file)).jinja == "{{ 'mine' }}"
    assert chosen("plain") is BUILT_IN["plain"]
    assert aliases(["llava:7b", "old=llava-sn"]) == {"llava:7b": None, "old": "llava-sn"}
    with pytest.raises(SettingsError, match="neither"):
        chosen("no-such")
    for wrong in ("=plain", "name=no-such", ""):
        with pytest.raises(SettingsError, match="model_alias"):
            aliases([wrong])
    with pytest.raises(InvalidRequest, match="there are llava-hf"):
        built_in("no-such", "chat_template")
