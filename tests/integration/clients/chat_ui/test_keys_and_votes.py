"""API keys, votes and the comparison of two models on the chat page."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import uvicorn
from helpers.browser import Chat
from helpers.chat_ui import ONE, OpenChat, check_accessible, png, sent_bodies
from helpers.server import KEY, FeedbackServer, free_port
from helpers.silent_engine import SilentEngine
from helpers.waiting import wait_for
from playwright.sync_api import expect

from llava_gateway.api.chat_ui.router import FILES
from llava_gateway.app import create_app
from llava_gateway.http.uvicorn_protocol import http_protocol
from llava_gateway.settings import Settings
from llava_gateway.types import Delta, Prompt, SamplingParams, Usage


def test_key_is_asked_once_and_kept_in_the_session(chat_at: OpenChat, feedback_server: FeedbackServer) -> None:
    chat = chat_at(feedback_server.server.url)
    dialog = chat.page.get_by_role("dialog", name="A key for this server")
    for wrong in ("", "wrong"):
        expect(dialog).to_contain_text("This server wants a key that it knows")
        expect(chat.page.locator("#key")).to_have_value("")
        chat.page.locator("#key").fill(wrong)
        with chat.page.expect_response("**/v1/models"):
            chat.page.locator("#key").press("Enter")
    chat.page.locator("#key").fill(f" {KEY} ")
    chat.page.locator("#key").press("Enter")
    chat.wait_for_models()
    chat.page.reload()
    chat.wait_for_models()
    expect(dialog).to_be_hidden()
    chat.ask("Hello")
    assert all(chat.wait_for_answers(1))
    assert chat.page.evaluate("() => [localStorage.length, document.cookie, sessionStorage.length]") == [0, "", 1]
    chat.set()
    chat.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    for language in ("curl", "Python"):
        chat.page.get_by_role("button", name=f"Copy as {language}").click()
        code = chat.page.evaluate("() => navigator.clipboard.readText()")
        assert "LLAVA_API_KEY" in code
        assert KEY not in code


def with_key(chat: Chat) -> Chat:
    """Enter the key on the page."""
    chat.page.locator("#key").fill(KEY)
    chat.page.locator("#key").press("Enter")
    chat.wait_for_models()
    return chat


def test_two_models_keep_their_own_histories_and_take_votes(chat_at: OpenChat, feedback_server: FeedbackServer) -> None:
    chat = with_key(chat_at(feedback_server.server.url))
    before = len(feedback_server.records())
    bodies = sent_bodies(chat.page)
    chat.choose(png(ONE))
    chat.ask("Describe this image.")
    chat.wait_for_answers(1)
    chat.page.get_by_role("button", name="Compare").click()
    expect(chat.page.get_by_label("Second model")).to_have_value("other")
    chat.ask("Hello")
    answers = chat.wait_for_answers(3)
    assert [body["model"] for body in bodies] == ["llava-demo", "llava-demo", "other"]
    assert bodies[1]["messages"] == bodies[2]["messages"]
    assert bodies[1]["messages"][1] == {"role": "assistant", "content": answers[0]}
    chat.ask("Hello again")
    answers = chat.wait_for_answers(5)
    assert [body["messages"][3]["content"] for body in bodies[3:]] == answers[1:3], "each model continues its own history"
    second = chat.page.get_by_role("article", name="Answer of other").last
    for name in ("Bad answer", "Good answer"):
        second.get_by_role("button", name=name).click()
        expect(second.get_by_role("button", pressed=True)).to_have_accessible_name(name)
    votes = feedback_server.records()[before:]
    assert [(vote["model"], vote["vote"]) for vote in votes] == [("other", "down"), ("other", "up")]
    assert [turn["value"] for turn in votes[1]["conversations"]][1::2] == [answers[0], answers[2], answers[4]]
    check_accessible(chat.page)


def test_votes_and_comparison_are_hidden_where_unavailable(chat: Chat) -> None:
    chat.ask("Hello")
    chat.wait_for_answers(1)
    expect(chat.page.get_by_role("button", name="Answer again")).to_be_visible()
    expect(chat.page.locator(".votes")).to_be_hidden()
    expect(chat.page.get_by_role("button", name="Compare")).to_be_hidden()


def test_page_needs_no_key_and_is_cached(feedback_server: FeedbackServer) -> None:
    url = feedback_server.server.url
    paths = ["/", *(f"/page/{name}" for name in FILES if name != "index.html")]
    browser = {"accept": "text/html,*/*"}
    for path in paths:
        answer = httpx.get(url + path, headers=browser, timeout=60)
        assert answer.status_code == 200
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        again = httpx.get(url + path, headers=browser | {"if-none-match": answer.headers["etag"]}, timeout=60)
        assert (again.status_code, again.content) == (304, b"")
    for path in ("/page", "/page/", "/page/index.html", "/page/../v1/models", "/page/nope.js", "//"):
        assert httpx.get(url + path, timeout=60).status_code == 401
    wrong = httpx.post(url + "/", timeout=60)
    assert (wrong.status_code, wrong.json()["error"]["message"]) == (405, "POST is not allowed here.")  # the API's error message


class HalfAnswerEngine(SilentEngine):
    """Generates one delta of each answer and no end."""

    async def generate(
        self,
        prompt: Prompt,
        sampling: SamplingParams,
        *,
        stream: bool,
        usage: Usage,
        on_delta: Callable[[Delta], None],
        on_text: Callable[[str, int], None] | None = None,
    ) -> None:
        on_delta(Delta(0, "One half", 2))
        await asyncio.Future()


@contextmanager
def half_answers() -> Iterator[tuple[str, Callable[[], None]]]:
    """A gateway whose answers stop in the middle: its URL, and a function that makes it refuse and abort all requests."""
    settings = Settings(model="llava-demo")
    app, port, loop = create_app(settings, engine=HalfAnswerEngine), free_port(), asyncio.new_event_loop()
    server = uvicorn.Server(uvicorn.Config(app, port=port, http=http_protocol(settings), log_level="error"))
    thread = threading.Thread(target=loop.run_until_complete, args=(server.serve(),))
    thread.start()

    def drain() -> None:
        asyncio.run_coroutine_threadsafe(app.state.gateway.drain(0, asyncio.Event()), loop).result(60)

    try:
        wait_for(lambda: server.started)
        yield f"http://127.0.0.1:{port}", drain
    finally:
        server.should_exit = True
        thread.join(60)
        loop.close()


def test_error_in_a_stream_is_shown_below_the_partial_answer(chat_at: OpenChat) -> None:
    with half_answers() as (url, drain):
        chat = chat_at(url)
        chat.wait_for_models()
        chat.ask("Hello")
        chat.page.locator(".answer .text:not(:empty)").wait_for()
        drain()
        assert chat.wait_for_answers(1) == ["One half"]
        expect(chat.errors).to_have_text("The server is shutting down; this request was cut off.")
