"""The chat page's copies of a conversation as code, and its accessibility on wide and narrow screens."""

import json
import re
import subprocess
import sys
from typing import Any

import pytest
from helpers.browser import Chat
from helpers.chat_ui import ONE, TWO, OpenChat, check_accessible, picture
from helpers.server import Server
from playwright.sync_api import expect

from llava_gateway.demo.images import describe

PHONE = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}


@pytest.mark.parametrize("language", ["curl", "Python"])
def test_copied_code_gets_the_same_answer(chat: Chat, language: str) -> None:
    chat.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    chat.set(temperature="0", system='It\'s a "test" \\ of $quotes and\nlines 🦙.')
    chat.choose(picture(ONE), picture(TWO))
    chat.ask("Describe these images.")
    (answer,) = chat.wait_for_answers(1)
    chat.page.get_by_role("button", name=f"Copy as {language}").click()
    expect(chat.page.locator("#status")).to_have_text("Copied.")
    code = chat.page.evaluate("() => navigator.clipboard.readText()")
    command = ["bash", "-euo", "pipefail"] if language == "curl" else [sys.executable, "-"]
    said = subprocess.run(command, input=code, capture_output=True, text=True, timeout=60, check=True).stdout
    assert (json.loads(said)["choices"][0]["message"]["content"] if language == "curl" else said.strip()) == answer


def test_code_is_shown_where_there_is_no_clipboard(chat: Chat) -> None:
    chat.page.evaluate("() => { Object.defineProperty(navigator, 'clipboard', {value: undefined}) }")  # as on http pages of other machines
    chat.set()
    chat.ask("Hello")
    chat.wait_for_answers(1)
    chat.page.get_by_role("button", name="Copy as curl").click()
    expect(chat.page.locator("#code")).to_have_value(re.compile("^curl -s .*/v1/chat/completions"))


@pytest.mark.parametrize("context", [{}, {"color_scheme": "dark"}, PHONE, {**PHONE, "color_scheme": "dark"}], ids=str)
def test_page_is_accessible(chat_at: OpenChat, server: Server, context: dict[str, Any]) -> None:
    chat = chat_at(server.url, **context)
    chat.wait_for_models()
    check_accessible(chat.page)
    chat.choose(picture(ONE))
    chat.question.fill("Describe this image.")
    chat.page.get_by_role("button", name="Send").click()
    assert chat.wait_for_answers(1) == [describe([ONE])]
    check_accessible(chat.page)
    width = chat.page.viewport_size["width"]  # type: ignore[index]
    assert chat.page.evaluate("() => document.documentElement.scrollWidth") <= width
    for control in chat.page.locator("header button:visible, header select:visible, #composer button:visible").all():
        box = control.bounding_box()
        assert box
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
    chat.set()
    check_accessible(chat.page)
    chat.page.get_by_role("button", name="Enter a key").click()
    check_accessible(chat.page)


def test_enter_begins_a_line_on_a_touch_screen(chat_at: OpenChat, server: Server) -> None:
    chat = chat_at(server.url, **PHONE)
    chat.question.fill("Hello")
    chat.question.press("Enter")
    expect(chat.question).to_have_value("Hello\n")
