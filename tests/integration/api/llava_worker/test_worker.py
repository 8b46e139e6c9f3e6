"""The answers of LLaVA's worker API: text, images, lengths, stops, and clients that disconnect."""

import base64
import threading
from typing import Any

import httpx
import pytest
from helpers.llava_worker import DESCRIBE, GENERATE, GRID, HELLO, asked, base64_of, chunks, llava_v1, metric, refused, tokens
from helpers.requests import MODEL, body, image
from helpers.server import Server
from helpers.waiting import wait_for

from llava_gateway.demo.images import Grid, describe, draw, encode

OTHER: Grid = ("white", "yellow", "black", "purple")
ANSWER = " I see no image. I am a small demo model: send me an image and ask me to describe it."
ENDLESS: dict[str, Any] = {"repetition_penalty": 0.01, "temperature": 0}
"""So strong a pull to what has been said that the answer never ends."""


def texts(plain_http: httpx.Client, prompt: str = HELLO, **fields: Any) -> list[str]:
    """What each chunk brings of the answer."""
    answer = plain_http.post(GENERATE, json=asked(prompt, **fields))
    assert answer.status_code == 200, answer.text
    found = list(chunks(iter([answer.content])))
    assert all(chunk["error_code"] == 0 and chunk["text"].startswith(prompt) for chunk in found)
    return [chunk["text"].removeprefix(prompt) for chunk in found]


def say(plain_http: httpx.Client, prompt: str = HELLO, **fields: Any) -> str:
    return texts(plain_http, prompt, **fields)[-1]


def test_text(plain_http: httpx.Client) -> None:
    assert say(plain_http) == ANSWER  # with its leading space: the prompt is the client's to the letter
    assert say(plain_http, images=[]) == ANSWER
    assert say(plain_http, images=None, stop=None, model=None, top_k=None) == ANSWER


def test_the_same_picture_gets_the_same_answer_as_in_a_chat(plain_http: httpx.Client) -> None:
    chat = plain_http.post("/v1/chat/completions", json=body(image(GRID), "Describe this image.")).json()
    answer = say(plain_http, "USER: <image>\nDescribe this image. ASSISTANT:", images=[base64_of(GRID)])
    assert answer.strip() == chat["choices"][0]["message"]["content"] == describe([GRID])


def test_two_images_in_order(plain_http: httpx.Client) -> None:
    prompt = llava_v1("<image>\n<image>\nDescribe these images.", None)
    for grids in ((GRID, OTHER), (OTHER, GRID)):
        assert say(plain_http, prompt, images=[base64_of(grid) for grid in grids]).strip() == describe(grids)


def test_an_image_of_a_megabyte(plain_http: httpx.Client) -> None:
    picture = draw(GRID, (700, 700))
    data = base64.b64encode(encode(picture, "BMP")).decode()
    assert len(data) > 1 << 20
    assert say(plain_http, DESCRIBE, images=[data]).strip() == describe([GRID])


def test_token_counts(plain_http: httpx.Client, server: Server) -> None:
    """The dialect says nothing of tokens; the metrics do."""
    prompt = llava_v1("<image>\n<image>\nDescribe these images.", None)
    whole = plain_http.post("/tokenize", json={"prompt": prompt, "images": ["data:,", "data:,"]}).json()
    before = tokens(server)
    assert say(plain_http, prompt, images=[base64_of(GRID), base64_of(OTHER)], max_new_tokens=7) != ""
    after = tokens(server)
    assert {kind: after[kind] - before[kind] for kind in after} == {"text": whole["count"] - 1152, "image": 1152, "completion": 7}


def test_length(plain_http: httpx.Client, server: Server) -> None:
    for length, expected in ((5, 5), (None, 256)):
        before = tokens(server)
        say(plain_http, **ENDLESS, max_new_tokens=length)
        assert tokens(server)["completion"] - before["completion"] == expected


def test_an_answer_takes_no_more_than_the_context_has_room_for(plain_http: httpx.Client, server: Server) -> None:
    prompt = "word " * 4080
    room = 4096 - plain_http.post("/tokenize", json={"prompt": prompt}).json()["count"]
    assert 0 < room < 20
    before = tokens(server)
    say(plain_http, prompt, **ENDLESS)
    assert tokens(server)["completion"] - before["completion"] == room
    assert say(plain_http, max_new_tokens=1_000_000) == ANSWER
    refused(plain_http.post(GENERATE, json=asked("word " * 4096)), 400, 1, "prompt", "4096")


def test_stop(plain_http: httpx.Client) -> None:
    until_model = ANSWER[: ANSWER.index("model")]
    assert say(plain_http, stop="model") == until_model
    assert say(plain_http, stop=["never", "model"]) == until_model
    assert all("mod" not in text for text in texts(plain_http, stop="model"))


@pytest.mark.parametrize("stop", ["", " ", [], ["", " "], "</s>", "###"])
def test_stops_that_do_not_come(plain_http: httpx.Client, stop: str | list[str]) -> None:
    assert say(plain_http, stop=stop) == ANSWER


def test_greedy(plain_http: httpx.Client) -> None:
    for fields in ({"temperature": 0.001}, {"temperature": 2, "top_p": 0}, {"temperature": 2, "top_k": 1}):
        assert say(plain_http, **fields) == ANSWER
    hot = {say(plain_http, temperature=2, top_k=top_k, max_new_tokens=20) for top_k in (0, -1, 100)}
    assert len(hot) == 3


def test_fields_of_other_workers_are_ignored(plain_http: httpx.Client) -> None:
    assert say(plain_http, image_hashes=["x"], image_sizes=[[1, 2]], stream=True, echo=True, logprobs=None, conv_mode="llava_v1") == ANSWER


def test_control_characters_and_other_scripts_come_back_as_they_were(plain_http: httpx.Client) -> None:
    prompt = 'Zażółć 🦙 "quoted" \\ \x00 \n\t USER: Hello ASSISTANT:'
    assert texts(plain_http, prompt)


def test_a_silent_stream_is_kept_alive(plain_http: httpx.Client) -> None:
    """All text is held back for a long stop string; empty chunks go out every half second at the latest."""
    with plain_http.stream("POST", GENERATE, json=asked(**ENDLESS, stop="x" * 10_000, max_new_tokens=400)) as answer:
        assert answer.headers["content-type"] == "application/octet-stream"
        raw = answer.read()
    assert raw.startswith(b"\0\0")
    assert len(list(chunks(iter([raw])))) == 1


def test_a_client_that_leaves_frees_its_place(plain_http: httpx.Client, server: Server) -> None:
    def status() -> dict[str, Any]:
        found: dict[str, Any] = plain_http.post("/worker_get_status").json()
        return found

    before = tokens(server)
    with plain_http.stream("POST", GENERATE, json=asked(**ENDLESS, max_new_tokens=3500)) as answer:
        pieces = answer.iter_raw()
        assert next(pieces).endswith(b"\0")
        assert status() == {"model_names": [MODEL], "speed": 1, "queue_length": 1}
        assert metric(server, "llava_requests_inside") == 1
    wait_for(lambda: metric(server, "llava_requests_inside") == 0, 5)
    assert status()["queue_length"] == 0
    assert tokens(server)["completion"] - before["completion"] < 3500


def test_many_pictures_at_once_are_never_mixed_up(plain_http: httpx.Client) -> None:
    colors = ("red", "green", "blue", "yellow", "purple", "orange", "black", "white")
    grids: list[Grid] = [(color, "red", "white", "blue") for color in colors]
    answers: dict[Grid, str] = {}

    def ask(grid: Grid) -> None:
        answers[grid] = say(plain_http, DESCRIBE, images=[base64_of(grid)]).strip()

    threads = [threading.Thread(target=ask, args=(grid,)) for grid in grids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {grid: describe([grid]) for grid in grids}
