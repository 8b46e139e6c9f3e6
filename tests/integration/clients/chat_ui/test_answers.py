"""Answers on the chat page in a real browser: streams, images, errors and stops."""

import base64
import io
import re
import threading
from typing import Any

import httpx
import pytest
import uvicorn
from helpers.browser import Chat
from helpers.chat_ui import ONE, TWO, OpenChat, png, sent_bodies
from helpers.origin import GRID as ORIGIN_GRID
from helpers.origin import Origin
from helpers.page_server import answer_with
from helpers.requests import body
from helpers.server import Server, free_port
from helpers.waiting import wait_for
from PIL import Image
from playwright.sync_api import Error, Page, expect
from starlette.applications import Starlette
from starlette.routing import Mount

from llava_gateway import create_app
from llava_gateway.demo.images import describe, draw
from llava_gateway.settings import Settings

FILL = """([names, contents]) => {
    const transfer = new DataTransfer();
    names.forEach((name, i) => transfer.items.add(
        new File([Uint8Array.from(atob(contents[i]), (c) => c.charCodeAt(0))], name, {type: "image/" + name.split(".")[1]})));
    return transfer;
}"""


def transfer(page: Page, **files: bytes) -> Any:
    """Return a DataTransfer with these files. The keyword `grid_png` is the file grid.png."""
    names = [name.replace("_", ".") for name in files]
    return page.evaluate_handle(FILL, [names, [base64.b64encode(content).decode() for content in files.values()]])


def test_answer_streams_and_shows_its_cost(chat: Chat) -> None:
    chat.page.evaluate(
        """() => {
            window.lengths = new Set();
            const look = () => lengths.add(document.querySelector(".answer .text").textContent.length);
            new MutationObserver(look).observe(document.getElementById("turns"), {subtree: true, characterData: true});
        }"""
    )
    chat.slow_down()
    chat.choose(png(ONE))
    chat.ask("Describe this image.")
    assert chat.wait_for_answers(1) == [describe([ONE])]
    assert chat.page.evaluate("() => lengths.size") > 10
    cost = r"\d+ text \+ 576 image \+ \d+ completion tokens · first token after \d+\.\d\d s · [\d.]+ tokens/s"
    expect(chat.costs).to_have_text(re.compile(f"^{cost}$"))
    expect(chat.page.locator("#spoken")).to_have_text(f"llava-demo: {describe([ONE])}")
    expect(chat.question).to_be_focused()


def test_two_dropped_images_are_described(chat: Chat) -> None:
    files = transfer(chat.page, one_png=png(ONE), two_png=png(TWO))
    chat.page.dispatch_event("#scroller", "drop", {"dataTransfer": files})
    expect(chat.page.locator("#images img")).to_have_count(2)
    chat.ask("Describe these images.")
    assert chat.wait_for_answers(1) == [describe([ONE, TWO])]


def test_pasted_image_is_shrunk_and_turned_upright(chat: Chat) -> None:
    large, clear = io.BytesIO(), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # a viewer turns the image clockwise by a quarter
    draw(ONE, (3000, 2000)).save(large, "JPEG", exif=exif)
    Image.new("RGBA", (20, 10), (255, 0, 0, 128)).save(clear, "PNG")
    files = transfer(chat.page, large_jpeg=large.getvalue(), clear_png=clear.getvalue())
    bodies = sent_bodies(chat.page)
    chat.page.evaluate("(files) => dispatchEvent(new ClipboardEvent('paste', {clipboardData: files}))", files)
    expect(chat.page.locator("#images img")).to_have_count(2)
    chat.ask("Hello")
    chat.wait_for_answers(1)
    first, second, text = bodies[0]["messages"][0]["content"]
    assert text == {"type": "text", "text": "Hello"}
    made = [Image.open(io.BytesIO(base64.b64decode(part["image_url"]["url"].partition(",")[2]))) for part in (first, second)]
    assert [(image.format, image.size, dict(image.getexif())) for image in made] == [("JPEG", (896, 1344), {}), ("PNG", (20, 10), {})]
    red, green, blue = made[0].getpixel((860, 40))  # type: ignore[misc]
    assert red > 180 > 60 > max(green, blue), "the top left has become the top right"


def test_image_by_url_is_fetched_only_by_the_server(chat: Chat, origin: Origin) -> None:
    chat.page.get_by_role("button", name="Address").click()
    for wrong in ("", "picture.png", "file:///etc/passwd", "javascript:alert(1)"):
        chat.page.locator("#address").fill(wrong)
        chat.page.locator("#address").press("Enter")
        expect(chat.page.locator("#address-error")).to_have_text("An image's address begins with http:// or https://.")
    chat.page.locator("#address").fill(f"{origin.url}/picture")
    chat.page.locator("#address").press("Enter")
    expect(chat.page.locator("#images .address")).to_have_text(f"{origin.url}/picture")
    chat.ask("Describe this image.")
    assert chat.wait_for_answers(1) == [describe([ORIGIN_GRID])]


def test_file_that_is_not_an_image_is_named_and_an_image_can_be_removed(chat: Chat) -> None:
    notes: Any = {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"no image"}
    chat.page.locator("#files").set_input_files([notes])
    expect(chat.page.locator("#status")).to_have_text("notes.txt is not an image.")
    chat.choose(png(ONE), png(TWO))
    chat.page.get_by_role("button", name="Remove 0.png").click()
    chat.ask("Describe this image.")
    assert chat.wait_for_answers(1) == [describe([TWO])]


def test_escape_stops_an_answer_that_can_be_repeated(scripted: Chat) -> None:
    """Text that comes together with the first text is not shown either."""
    answer_with(scripted.page, "0123456789")
    scripted.at_first_text("stop")
    scripted.ask("Hello")
    assert scripted.wait_for_answers(1) == ["0"]
    expect(scripted.costs).to_contain_text("stopped")
    scripted.page.get_by_role("button", name="Answer again").click()
    expect(scripted.answers).to_have_text("0123456789")
    expect(scripted.costs).not_to_contain_text("stopped")


def test_escape_ends_the_request_while_no_text_has_come(scripted: Chat) -> None:
    with scripted.page.expect_request("**/v1/chat/completions"):
        scripted.ask("Hello")
    with scripted.page.expect_event("requestfailed"):
        scripted.page.keyboard.press("Escape")
    assert scripted.wait_for_answers(1) == [""]
    expect(scripted.costs).to_have_text("stopped")


def test_edited_question_sends_the_shortened_history(chat: Chat) -> None:
    bodies = sent_bodies(chat.page)
    chat.set(system="Be brief.", temperature="0", max_tokens="60")
    chat.choose(png(ONE))
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
    chat.choose(png(TWO))
    chat.ask("Describe these images.")
    assert chat.wait_for_answers(1) == [describe([ONE, TWO])]
    assert [message["role"] for message in bodies[2]["messages"]] == ["system", "user"]
    expect(chat.question).to_have_value("a draft")
    chat.page.get_by_role("button", name="New").click()
    expect(chat.answers).to_have_count(0)
    chat.ask("Hello")
    chat.wait_for_answers(1)
    assert [message["role"] for message in bodies[3]["messages"]] == ["user"], "a system prompt belongs to one conversation"


def test_error_is_shown_in_the_servers_words(chat: Chat, server: Server) -> None:
    message = httpx.post(f"{server.v1}/chat/completions", json=body("Hello", max_tokens=0), timeout=60).json()["error"]["message"]
    chat.set(max_tokens="0")
    chat.ask("Hello")
    chat.wait_for_answers(1)
    expect(chat.errors).to_have_text(message)
    chat.set(max_tokens="2")
    chat.page.get_by_role("button", name="Answer again").click()
    expect(chat.costs).to_contain_text("ended at max tokens")
    expect(chat.errors).to_be_hidden()


def test_new_text_does_not_scroll_a_reader_away(chat: Chat) -> None:
    chat.page.set_viewport_size({"width": 500, "height": 420})
    top = "() => document.getElementById('scroller').scrollTop"
    chat.choose(png(ONE), png(TWO))
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


def test_browser_refuses_to_make_html_of_text(chat: Chat) -> None:
    with pytest.raises(Error, match="TrustedHTML"):
        chat.page.evaluate("() => { document.querySelector('#turns').innerHTML = '<b>x</b>' }")
    chat.monitor.problems.clear()  # the browser logs this error


def test_page_works_below_a_path_while_the_model_loads(chat_at: OpenChat) -> None:
    port = free_port()
    app = create_app(Settings(model="llava-demo"), engine=lambda: pytest.fail("the test starts no engine"))
    running = uvicorn.Server(uvicorn.Config(Starlette(routes=[Mount("/llava", app)]), port=port, lifespan="off", log_config=None))
    thread = threading.Thread(target=running.run)
    thread.start()
    try:
        wait_for(lambda: running.started)
        chat = chat_at(f"http://127.0.0.1:{port}/llava")
        chat.wait_for_models()
        chat.ask("Hello")
        chat.wait_for_answers(1)
        expect(chat.errors).to_have_text(re.compile(r"^The model is loading, for \d+ s now: starting\.$"))
    finally:
        running.should_exit = True
        thread.join()
