"""A browser and the chat page for the tests in this folder."""

from collections.abc import Iterator
from typing import Any

import pytest
from helpers.browser import Chat, chromium
from helpers.chat_ui import OpenChat
from helpers.server import Server
from playwright.sync_api import Browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture
def chat_at(browser: Browser) -> Iterator[OpenChat]:
    """Opens the chat page at a URL. In the end nothing may have gone wrong that the test does not expect."""
    chats = []

    def open_chat(url: str, **context: Any) -> Chat:
        chats.append(Chat(browser.new_context(**context).new_page(), url))
        return chats[-1]

    yield open_chat
    for chat in chats:
        chat.page.context.close()
        assert chat.watch.wrong == []


@pytest.fixture
def chat(chat_at: OpenChat, server: Server) -> Chat:
    chat = chat_at(server.url)
    chat.wait_for_models()
    return chat
