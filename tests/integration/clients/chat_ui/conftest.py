"""The chat page for the tests in this folder."""

from collections.abc import Iterator
from typing import Any

import pytest
from helpers.browser import Chat
from helpers.chat_ui import OpenChat
from helpers.page_server import page_server
from helpers.server import Server
from playwright.sync_api import Browser


@pytest.fixture
def chat_at(browser: Browser) -> Iterator[OpenChat]:
    """A function that opens the chat page at a URL. At the end, check that the page had no faults."""
    chats = []

    def open_chat(url: str, **context: Any) -> Chat:
        chats.append(Chat(browser.new_context(**context).new_page(), url))
        return chats[-1]

    yield open_chat
    for chat in chats:
        chat.page.context.close()
        assert chat.monitor.problems == []


@pytest.fixture
def chat(chat_at: OpenChat, server: Server) -> Chat:
    """The chat page of the shared server, with its models."""
    chat = chat_at(server.url)
    chat.wait_for_models()
    return chat


@pytest.fixture(scope="session")
def page_url() -> Iterator[str]:
    """The URL of a gateway whose answers come from `answer_with` of helpers.page_server."""
    with page_server() as url:
        yield url


@pytest.fixture
def scripted(chat_at: OpenChat, page_url: str) -> Chat:
    """The chat page of this gateway."""
    chat = chat_at(page_url)
    chat.wait_for_models()
    return chat
