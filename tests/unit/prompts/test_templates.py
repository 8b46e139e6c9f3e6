"""Built-in templates: Hugging Face's where that has one, elsewhere LLaVA's and SambaStudio's forms, written out by hand."""

import re
from pathlib import Path
from typing import Any

import pytest
from helpers.prompts import CHATS, IMAGE, LLAVA_HF_TEMPLATE, huggingface, model_info

from llava_gateway.errors import InvalidRequest
from llava_gateway.prompts.renderer import PromptRenderer
from llava_gateway.prompts.templates import BUILT_IN, CURIOUS_HUMAN, CURIOUS_USER, LANGUAGE_AND_VISION, aliases, built_in, chosen
from llava_gateway.settings import SettingsError
from llava_gateway.types import Message, Role, Text

ASKED = [Message("user", (Text("What?"), IMAGE))]
ANSWERED = [*ASKED, Message("assistant", (Text("Red."),)), Message("user", (Text("And now?"),))]
SYSTEM = [Message("system", (Text("Be brief."),)), Message("user", (Text("Hi"),))]
GOLDEN = {
    "llava-hf-eos": (
        "USER: <image>\nWhat? ASSISTANT:",
        "USER: <image>\nWhat? ASSISTANT: Red.</s>USER: And now? ASSISTANT:",
        "Be brief. USER: Hi ASSISTANT:",
    ),
    "llava-interleave": (
        "<|im_start|>user\n<image>\nWhat?<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>user\n<image>\nWhat?<|im_end|>\n<|im_start|>assistant\n\nRed.<|im_end|>\n"
        "<|im_start|>user\n\nAnd now?<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>system\n\nBe brief.<|im_end|>\n<|im_start|>user\n\nHi<|im_end|>\n<|im_start|>assistant\n",
    ),
    "llava_v0": (
        f"{CURIOUS_HUMAN}###Human: <image>\nWhat?###Assistant:",
        f"{CURIOUS_HUMAN}###Human: <image>\nWhat?###Assistant: Red.###Human: And now?###Assistant:",
        "Be brief.###Human: Hi###Assistant:",
    ),
    "vicuna_v1": (
        f"{CURIOUS_USER} USER: <image>\nWhat? ASSISTANT:",
        f"{CURIOUS_USER} USER: <image>\nWhat? ASSISTANT: Red.</s>USER: And now? ASSISTANT:",
        "Be brief. USER: Hi ASSISTANT:",
    ),
    "llava_v1": (
        f"{CURIOUS_HUMAN} USER: <image>\nWhat? ASSISTANT:",
        f"{CURIOUS_HUMAN} USER: <image>\nWhat? ASSISTANT: Red.</s>USER: And now? ASSISTANT:",
        "Be brief. USER: Hi ASSISTANT:",
    ),
    "llava-sn": (
        f"{CURIOUS_HUMAN}\n\n### Human: What?\n<image>\n\n###",
        f"{CURIOUS_HUMAN}\n\n### Human: What?\n<image>\n\n### Assistant: Red.\n\n### Human: And now?\n\n###",
        "Be brief.\n\n### Human: Hi\n\n###",
    ),
    "llava_llama_2": (
        f"[INST] <<SYS>>\n{LANGUAGE_AND_VISION}\n<</SYS>>\n\n<image>\nWhat? [/INST]",
        f"[INST] <<SYS>>\n{LANGUAGE_AND_VISION}\n<</SYS>>\n\n<image>\nWhat? [/INST] Red. </s><s>[INST] And now? [/INST]",
        "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST]",
    ),
    "mistral_instruct": (
        "[INST] <image>\nWhat? [/INST]",
        "[INST] <image>\nWhat? [/INST] Red. </s>[INST] And now? [/INST]",
        "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST]",
    ),
    "chatml": (
        "<|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\n<image>\nWhat?<|im_end|><|im_start|>assistant\n",
        "<|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\n<image>\nWhat?<|im_end|>"
        "<|im_start|>assistant\nRed.<|im_end|><|im_start|>user\nAnd now?<|im_end|><|im_start|>assistant\n",
        "<|im_start|>system\nBe brief.<|im_end|><|im_start|>user\nHi<|im_end|><|im_start|>assistant\n",
    ),
    "plain": ("<image>\nWhat?\n", "<image>\nWhat?\nRed.\nAnd now?\n", "Be brief.\nHi\n"),
}


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
    assert set(BUILT_IN) == {"llava-hf", *GOLDEN}


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
