"""Conversations that the browser keeps: after a reload, in two tabs, within their bounds, and without storage."""

import json
from pathlib import Path

import pytest
from helpers.browser import Chat
from helpers.chat_ui import ONE, OpenChat, check_accessible, png
from helpers.page_server import answer_with
from helpers.waiting import wait_for
from playwright.sync_api import BrowserContext, Locator, expect

NO_STORAGE = """Object.defineProperty(window, "indexedDB", {get() { throw new DOMException("refused", "SecurityError"); }});
Object.defineProperty(window, "localStorage", {get() { throw new DOMException("refused", "SecurityError"); }});"""
STORE = 'const {LIMITS, summaries} = await import(new URL("page/conversation_store.js", document.baseURI));'


def ask(chat: Chat, text: str, count: int = 1) -> None:
    chat.ask(text)
    chat.wait_for_answers(count)


def titles(chat: Chat) -> Locator:
    return chat.page.locator(".conversation .open")


def kept(chat: Chat, *expected: str) -> None:
    """Wait until the list has these titles."""
    expect(titles(chat)).to_have_text(list(expected))


def kept_answers(chat: Chat, count: int) -> None:
    """Wait until the open conversation is stored with so many whole answers."""
    read = """async () => {
        const {read} = await import(new URL("page/conversation_store.js", document.baseURI));
        const kept = await read(location.hash.slice(1));
        return kept?.turns.flatMap(({answers}) => answers).filter(({ending}) => !ending).length;
    }"""
    wait_for(lambda: chat.page.evaluate(read) == count)


def second_tab(chat: Chat, context: BrowserContext) -> Chat:
    """Return another tab with the same conversation."""
    page = context.new_page()
    url, fragment = chat.page.url.split("/#")
    other = Chat(page, url)
    other.wait_for_models()
    page.goto(f"{url}/#{fragment}")
    page.reload()
    expect(other.answers).to_have_count(1)
    return other


def test_reload_keeps_the_conversation_with_its_images_settings_and_tokens(scripted: Chat) -> None:
    bodies = answer_with(scripted.page, "A *grid*.")
    scripted.set(system="Be brief.")
    scripted.choose(png(ONE))
    ask(scripted, "Describe this image.")
    cost = scripted.costs.text_content()
    kept_answers(scripted, 1)
    scripted.page.reload()
    expect(scripted.answers.locator("em")).to_have_text("grid")
    expect(scripted.costs).to_have_text(str(cost))
    expect(scripted.page.locator(".question img")).to_have_count(1)
    expect(scripted.page.locator("#system")).to_have_value("Be brief.")
    scripted.wait_for_models()
    ask(scripted, "And now?", 2)
    expect(scripted.page.locator("#total")).to_have_text("Conversation: 1212 tokens, 1152 of images")
    assert bodies[1]["messages"][:2] == bodies[0]["messages"]
    assert bodies[1]["messages"][2:] == [{"role": "assistant", "content": "A *grid*."}, {"role": "user", "content": "And now?"}]


def test_conversations_are_listed_searched_renamed_and_deleted(scripted: Chat) -> None:
    page = scripted.page
    answer_with(page, "A red cat.", "A green bird.")
    scripted.set(system="Be brief.")
    ask(scripted, "First")
    page.get_by_role("button", name="New", exact=True).click()
    expect(page.locator("#system")).to_have_value("")
    ask(scripted, "Second")
    kept(scripted, "Second", "First")
    check_accessible(page)
    page.get_by_role("searchbox").fill("RED CAT")
    kept(scripted, "First")
    page.get_by_role("searchbox").fill("no such text")
    expect(page.locator("#no-conversations")).to_have_text("No conversation has this text.")
    page.get_by_role("searchbox").fill("")
    titles(scripted).last.focus()
    titles(scripted).last.press("Enter")
    expect(scripted.answers).to_have_text("A red cat.")
    expect(page.locator("#system")).to_have_value("Be brief.")
    page.get_by_role("button", name="Rename First").focus()
    page.get_by_role("button", name="Rename First").press("Enter")
    check_accessible(page)
    page.get_by_label("Title").fill("Cats")
    page.get_by_label("Title").press("Enter")
    kept(scripted, "Cats", "Second")
    page.get_by_role("button", name="Rename Cats").click()
    page.get_by_label("Title").fill("Dogs")
    page.get_by_label("Title").press("Escape")
    kept(scripted, "Cats", "Second")
    page.get_by_role("button", name="Delete Cats").click()
    check_accessible(page)
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    kept(scripted, "Second")
    expect(scripted.answers).to_have_count(0)
    page.get_by_role("button", name="Delete all").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    kept(scripted)


def test_conversation_that_is_left_or_deleted_during_its_answer_stays_so(scripted: Chat) -> None:
    page = scripted.page
    page.unroute_all()
    scripted.ask("One")  # the engine never answers
    kept(scripted, "One")
    page.get_by_role("button", name="New", exact=True).click()
    answer_with(page, "Two.")
    ask(scripted, "Two")
    kept(scripted, "Two", "One")
    page.unroute_all()
    scripted.ask("Three")
    page.get_by_role("button", name="Delete Two").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    kept(scripted, "One")
    page.reload()
    kept(scripted, "One")


def test_two_tabs_follow_each_other_and_overwrite_nothing(scripted: Chat) -> None:
    context = scripted.page.context
    answer_with(scripted.page, "one", "two")
    ask(scripted, "Hello")
    kept_answers(scripted, 1)
    other = second_tab(scripted, context)
    answer_with(other.page, "three")
    ask(scripted, "From the first tab", 2)
    expect(other.answers).to_have_text(["one", "two"])
    other.page.get_by_role("button", name="Edit and send again").last.click()  # the second tab does not follow during an edit
    answer_with(scripted.page, "four")
    ask(scripted, "From the first tab again", 3)
    kept_answers(scripted, 3)
    ask(other, "From the second tab", 2)
    expect(other.page.locator("#status")).to_have_text("The conversation was changed in another tab. It continues here as a copy.")
    kept_answers(other, 2)
    scripted.page.reload()
    expect(scripted.answers).to_have_text(["one", "two", "four"])
    other.page.reload()
    expect(other.answers).to_have_text(["one", "three"])
    kept(scripted, "Hello", "Hello")


def test_oldest_conversations_go_when_there_are_too_many_or_too_large_ones(scripted: Chat) -> None:
    page = scripted.page
    answer_with(page, "x" * 100)
    page.evaluate(f"async () => {{ {STORE} LIMITS.count = 2; }}")
    for name in ("A", "B", "C"):
        page.get_by_role("button", name="New", exact=True).click() if name != "A" else None
        ask(scripted, name)
    kept(scripted, "C", "B")
    size = page.evaluate(f"async () => {{ {STORE} return (await summaries())[0].size; }}")
    page.evaluate(f"async () => {{ {STORE} LIMITS.characters = {size} + 50; }}")
    page.get_by_role("button", name="New", exact=True).click()
    ask(scripted, "D")
    kept(scripted, "D")
    ask(scripted, "E", 2)
    expect(page.locator("#status")).to_have_text("The conversation is too large for this browser, so it is not kept.")


def test_page_works_where_the_browser_refuses_storage(chat_at: OpenChat, page_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Chat.__init__

    def without_storage(self: Chat, page: object, url: str) -> None:
        page.add_init_script(NO_STORAGE)  # type: ignore[attr-defined]
        opened(self, page, url)  # type: ignore[arg-type]

    monkeypatch.setattr(Chat, "__init__", without_storage)
    chat = chat_at(page_url)
    chat.wait_for_models()
    expect(chat.page.locator("#kept")).to_have_text("This browser keeps no conversations: they are gone when you close the page.")
    answer_with(chat.page, "one", "two")
    ask(chat, "A")
    chat.page.get_by_role("button", name="New", exact=True).click()
    ask(chat, "B")
    titles(chat).last.click()
    expect(chat.answers).to_have_text("one")


def test_export_has_the_questions_the_answers_and_the_images(scripted: Chat) -> None:
    answer_with(scripted.page, "A *grid*.")
    scripted.set()
    scripted.choose(png(ONE))
    ask(scripted, "Describe <this>/image.")
    files = {}
    for kind in ("JSON", "Markdown"):
        with scripted.page.expect_download() as download:
            scripted.page.get_by_role("button", name=f"Export as {kind}").click()
        files[kind] = Path(download.value.path()).read_text()
        assert download.value.suggested_filename == f"Describe thisimage.{'json' if kind == 'JSON' else 'md'}"
    (turn,) = json.loads(files["JSON"])["turns"]
    assert turn["question"]["text"] == "Describe <this>/image."
    assert turn["question"]["images"][0]["url"].startswith("data:image/jpeg;base64,")
    assert (turn["answers"][0]["model"], turn["answers"][0]["text"]) == ("llava-demo", "A *grid*.")
    assert files["Markdown"].startswith("# Describe <this>/image.\n\n## Question\n\n![0.png](data:image/jpeg;base64,")
    assert files["Markdown"].endswith("Describe <this>/image.\n\n## llava-demo\n\nA *grid*.\n")


def test_list_is_a_drawer_on_a_phone(chat_at: OpenChat, page_url: str) -> None:
    chat = chat_at(page_url, viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True)
    chat.wait_for_models()
    answer_with(chat.page, "one")
    chat.question.fill("A")
    chat.page.locator("#send").click()
    chat.wait_for_answers(1)
    drawer = chat.page.get_by_role("navigation")
    expect(drawer).to_be_hidden()
    chat.page.get_by_role("button", name="Conversations").click()
    expect(chat.page.get_by_role("searchbox")).to_be_focused()
    check_accessible(chat.page)
    chat.page.keyboard.press("Escape")
    expect(drawer).to_be_hidden()
    expect(chat.page.get_by_role("button", name="Conversations")).to_be_focused()
    chat.page.get_by_role("button", name="Conversations").click()
    titles(chat).click()
    expect(drawer).to_be_hidden()
