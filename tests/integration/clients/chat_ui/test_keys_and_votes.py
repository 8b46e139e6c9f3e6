"""API keys, votes and the comparison of two models on the chat page."""

import signal
from pathlib import Path

import httpx
from helpers.browser import Chat
from helpers.chat_ui import ONE, OpenChat, check_accessible, png, sent_bodies
from helpers.server import KEY, FeedbackServer, serve
from playwright.sync_api import expect

from llava_gateway.api.chat_ui.router import FILES
from llava_gateway.demo.images import describe


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
    for path in paths:
        answer = httpx.get(url + path, timeout=60)
        assert answer.status_code == 200
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        again = httpx.get(url + path, headers={"if-none-match": answer.headers["etag"]}, timeout=60)
        assert (again.status_code, again.content) == (304, b"")
    for path in ("/page", "/page/", "/page/index.html", "/page/../v1/models", "/page/nope.js", "//"):
        assert httpx.get(url + path, timeout=60).status_code == 401
    wrong = httpx.post(url + "/", timeout=60)
    assert (wrong.status_code, wrong.json()["error"]["message"]) == (405, "POST is not allowed here.")  # the API's error message


def test_error_in_a_stream_is_shown_below_the_partial_answer(chat_at: OpenChat, tmp_path: Path) -> None:
    with serve(tmp_path, "--shutdown-timeout", "0") as server:
        chat = chat_at(server.url)
        chat.wait_for_models()
        chat.choose(*[png(ONE)] * 5)
        chat.ask("Describe these images.")  # five images, so that the answer is long enough to end the server in the middle
        chat.page.locator(".answer .text:not(:empty)").wait_for()
        server.process.send_signal(signal.SIGTERM)
        (partial,) = chat.wait_for_answers(1)
        assert partial
        assert describe([ONE] * 5).startswith(partial[:20])
        expect(chat.errors).to_have_text("The server is shutting down; this request was cut off.")
        assert server.process.wait(120) == 0
