"""text-generation-webui's API: chats with histories, templates and images, over HTTP."""

from typing import Any

import httpx
import pytest
from helpers.requests import body, image, user
from helpers.text_generation_webui import API, ASK, GREEDY, GRID, OTHER, chat, refused, tag

from llava_gateway.api.text_generation_webui.chat import (
    GREETING,
    TEMPLATES,
)
from llava_gateway.demo.images import describe


def test_chat_with_an_image_keeps_its_history(plain_http: httpx.Client) -> None:
    turns = chat(plain_http, f"{tag(GRID)}\n{ASK}", mode="instruct")
    assert turns == [[f"{tag(GRID)}\n{ASK}", describe([GRID])]]
    turns = chat(plain_http, "What color is the bottom right?", *turns)
    assert turns[1] == ["What color is the bottom right?", "Orange."]


def test_chat_sees_only_the_last_image_by_default(plain_http: httpx.Client) -> None:
    said = f"{tag(GRID)} {tag(OTHER)} Describe these images."
    assert chat(plain_http, said, add_all_images_to_prompt=True)[0][1] == describe([GRID, OTHER])
    assert "Image 2" not in chat(plain_http, said)[0][1]
    seen = [f"{tag(GRID)}{ASK}", describe([GRID])]
    assert chat(plain_http, f"{tag(OTHER)}Describe these images.", seen, add_all_images_to_prompt=True)[1][1] == describe([GRID, OTHER])


@pytest.mark.parametrize(("name", "template"), TEMPLATES.items())
def test_instruction_template_gives_the_same_answer_as_in_openais_api(plain_http: httpx.Client, name: str, template: str) -> None:
    """The model answers in the same way through OpenAI's API with the same template."""
    asked = body(image(GRID), ASK, chat_template=template, max_tokens=20)
    said = plain_http.post("/v1/chat/completions", json=asked).json()["choices"][0]["message"]["content"]
    assert chat(plain_http, f"{tag(GRID)}\n{ASK}", instruction_template=name, max_new_tokens=20)[0][1] == said


@pytest.mark.parametrize("name", ["LLaVA-v1", "Vicuna-v1.1", "llava-hf", "None", None])
def test_instruction_template_close_to_the_models_own_describes_the_image(plain_http: httpx.Client, name: str | None) -> None:
    assert chat(plain_http, f"{tag(GRID)}\n{ASK}", instruction_template=name)[0][1] == describe([GRID])


def test_system_message_depends_on_the_mode(plain_http: httpx.Client) -> None:
    def said(**fields: Any) -> str:
        return chat(plain_http, "Hello", max_new_tokens=60, do_sample=True, temperature=2, seed=3, **fields)[0][1]

    def said_elsewhere(system: str) -> str:
        messages = [{"role": "system", "content": system}, user("Hello")]
        asked = {"model": "llava-demo", "messages": messages, "temperature": 2, "seed": 3, "max_tokens": 60}
        return str(plain_http.post("/v1/chat/completions", json=asked).json()["choices"][0]["message"]["content"])

    one, other = "Describe the images: red, blue. " * 3, "What color is the top left? " * 3
    assert said_elsewhere(one) != said_elsewhere(other)
    assert said(mode="instruct", context_instruct=one, context=other) == said_elsewhere(one)
    assert said(mode="chat", context_instruct=one, context=other) == said_elsewhere(other)
    assert said(context_instruct=one) == said_elsewhere(one)


def test_regenerate_and_continue_complete_the_last_answer(plain_http: httpx.Client) -> None:
    asked = f"{tag(GRID)}\n{ASK}"
    assert chat(plain_http, "of no effect", [asked, "Wrong."], regenerate=True) == [[asked, describe([GRID])]]
    begun = describe([GRID])[:20]
    assert chat(plain_http, "", [asked, begun], _continue=True) == [[asked, describe([GRID])]]
    assert chat(plain_http, "", [asked, ""], _continue=True) == [[asked, describe([GRID])]]


def test_greeting_is_not_a_user_message(plain_http: httpx.Client) -> None:
    greeted = [GREETING, "Hello! What shall I describe?"]
    turns = chat(plain_http, "Hello", greeted, max_new_tokens=20)
    messages = [{"role": "assistant", "content": greeted[1]}, user("Hello")]
    asked = body() | {"messages": messages, "max_tokens": 20}
    assert turns[0] == greeted
    assert turns[1][1] == plain_http.post("/v1/chat/completions", json=asked).json()["choices"][0]["message"]["content"]
    nothing = {"user_input": "", "history": {"internal": [greeted]}, "regenerate": True}
    refused(plain_http.post(f"{API}/chat", json=nothing), 400, "regenerate")


def test_visible_history_is_kept_apart_from_the_internal_one(plain_http: httpx.Client) -> None:
    history = {"internal": [["Hello", "Hi"]], "visible": [["<b>Hello</b>", "<b>Hi</b>"]]}

    def visible(**fields: Any) -> Any:
        return plain_http.post(f"{API}/chat", json={"history": history} | GREEDY | fields).json()["results"][0]["history"]["visible"]

    assert visible(user_input="Hello")[0] == ["<b>Hello</b>", "<b>Hi</b>"]
    assert visible(regenerate=True)[0][0] == "<b>Hello</b>"
    assert visible(_continue=True)[0][1].startswith("<b>Hi</b>")
