"""Which images of text-generation-webui's requests the model gets, and where they stand in its prompt."""

from types import SimpleNamespace
from typing import Any

import pytest
from helpers.prompts import model_info
from helpers.requests import MODEL

from llava_gateway.api.text_generation_webui.chat import ChatBody
from llava_gateway.api.text_generation_webui.prompts import GenerateBody
from llava_gateway.prompts.renderer import PromptRenderer
from llava_gateway.prompts.templates import BUILT_IN
from llava_gateway.settings import Settings

MODEL_INFO = model_info()
RENDERER = PromptRenderer(MODEL_INFO)
A, B = '<img src="data:image/png;base64,AAAA">', "<img src='data:image/png;base64,BBBB' alt='b'>"


def gateway(webui_images: str) -> Any:
    return SimpleNamespace(settings=Settings(model=MODEL, webui_images=webui_images), model=lambda name: MODEL_INFO)


def chat_prompt(said: str, *turns: list[str], webui_images: str = "last", **fields: Any) -> str:
    """Return the prompt of a chat's next answer."""
    body = ChatBody.parse({"user_input": said, "history": {"internal": list(turns)}} | fields)
    return RENDERER.render(chat := body.to_chat(MODEL, gateway(webui_images), body.turns()), chat.template).text


def written_prompt(prompt: str, webui_images: str = "last", **fields: Any) -> str:
    """Return the prompt that the model gets for a prompt that the client has written."""
    return RENDERER.render(GenerateBody.parse({"prompt": prompt} | fields).to_completion(MODEL, gateway(webui_images))).text


@pytest.mark.parametrize(
    ("said", "prompt"),
    [
        (f"What is this?\n{A}", "USER: What is this?\n<image> ASSISTANT:"),
        (f"Is {A} like {B}?", "USER: Is <image> like <image>? ASSISTANT:"),
        (f"{A}\nIs this like {B}?", "USER: <image>\nIs this like <image>? ASSISTANT:"),
        (f"{A} {B}\nAre these alike?", "USER: <image>\n<image>\nAre these alike? ASSISTANT:"),
        (f" {A}What is this? ", "USER: <image>\nWhat is this? ASSISTANT:"),
        (f"Not <image> but {A}", "USER: Not <image> but <image> ASSISTANT:"),
        (" Hello ", "USER:  Hello  ASSISTANT:"),
    ],
)
def test_image_of_a_chat_stays_where_it_stands_in_the_text(said: str, prompt: str) -> None:
    assert chat_prompt(said, webui_images="all") == prompt


@pytest.mark.parametrize("name", BUILT_IN)
def test_image_stays_between_the_texts_with_every_template(name: str) -> None:
    assert "Is <image> like <image>?" in chat_prompt(f"Is {A} like {B}?", webui_images="all", instruction_template=name)


def test_dropped_image_leaves_the_text_of_its_turn() -> None:
    prompt = "USER: What is this? ASSISTANT: Red.</s>USER: And this: <image> ASSISTANT:"
    assert chat_prompt(f"And this: {B}", [f"{A}\nWhat is this?", "Red."]) == prompt


def test_turn_without_an_answer_keeps_its_image_between_the_texts() -> None:
    assert chat_prompt("And now?", [f"Is this {A} red?", ""]) == "USER: Is this <image> red?\nAnd now? ASSISTANT:"


def test_image_of_a_prompt_stays_where_it_stands_in_the_text() -> None:
    prompt = "USER: Is {} like {}? ASSISTANT:"
    assert written_prompt(prompt.format(A, B), "all") == prompt.format("<image>", "<image>")


@pytest.mark.parametrize(
    ("setting", "field", "images"),
    [("last", None, 1), ("last", False, 1), ("last", True, 2), ("all", None, 2), ("all", True, 2), ("all", False, 1)],
)
def test_field_overrides_the_server_setting(setting: str, field: bool | None, images: int) -> None:
    for prompt_of in (chat_prompt, written_prompt):
        prompt = prompt_of(f"{A}{B} Hello", webui_images=setting, add_all_images_to_prompt=field)
        assert prompt.count("<image>") == images
