"""The languages of the chat page, and the camera of a phone."""

from typing import Any

from helpers.browser import Chat
from helpers.chat_ui import ONE, OpenChat, check_accessible, png
from helpers.page_server import answer_with
from playwright.sync_api import expect


def test_language_is_the_browsers_until_the_user_chooses_another(chat_at: OpenChat, page_url: str) -> None:
    chat = chat_at(page_url, locale="de-AT")
    page = chat.page
    chat.wait_for_models()
    expect(page.get_by_role("heading", name="Fragen Sie etwas zu Ihren Bildern")).to_be_visible()
    expect(page.locator("html")).to_have_attribute("lang", "de")
    answer_with(page, "`a`\n```\ncode\n```")
    page.get_by_label("Frage", exact=True).fill("Hallo")
    page.get_by_label("Frage", exact=True).press("Enter")
    chat.wait_for_answers(1)
    expect(chat.costs).to_contain_text("10 Text- + 576 Bild- + 20 Antworttokens · erstes Token nach 0,")
    expect(page.get_by_role("article", name="Antwort von llava-demo")).to_be_visible()
    expect(page.get_by_role("button", name="Kopieren", exact=True)).to_be_visible()
    check_accessible(page)
    page.get_by_role("button", name="Einstellungen").click()
    page.get_by_label("Sprache").select_option("English")
    expect(page.get_by_role("article", name="Answer of llava-demo")).to_be_visible()
    expect(page.get_by_role("button", name="Copy", exact=True)).to_be_visible()
    expect(chat.costs).to_contain_text("completion tokens · first token after 0.")
    page.reload()
    expect(page.get_by_role("button", name="Settings")).to_be_visible()
    expect(page.locator("html")).to_have_attribute("lang", "en")


def test_phone_offers_its_camera(chat_at: OpenChat, page_url: str) -> None:
    chat = chat_at(page_url, viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True)
    chat.wait_for_models()
    with chat.page.expect_file_chooser() as chooser:
        chat.page.get_by_role("button", name="Camera", exact=True).click()
    assert chooser.value.element.get_attribute("capture") == "environment"
    photo: Any = {"name": "photo.png", "mimeType": "image/png", "buffer": png(ONE)}
    chooser.value.set_files([photo])
    expect(chat.page.get_by_role("button", name="Remove photo.png")).to_be_visible()


def test_camera_is_not_offered_to_a_mouse(scripted: Chat) -> None:
    expect(scripted.page.locator("#add-files")).to_be_visible()
    expect(scripted.page.locator("#add-camera")).to_be_hidden()
