"""The answers of LLaVA's worker API: text, images, lengths, stops, and clients that disconnect."""

import base64
import threading
from typing import Any

import httpx
import pytest
from helpers.llava_worker import (
    DESCRIBE,
    GENERATE,
    GRID,
    HELLO,
    PAGE_NAME,
    base64_of,
    chunks,
    llava_v1,
    refused,
    request,
    tokens,
    tokens_since,
)
from helpers.requests import body, image
from helpers.server import Server
from helpers.waiting import wait_for

from llava_gateway.demo.images import Grid, describe, draw, encode

OTHER: Grid = ("white", "yellow", "black", "purple")
ANSWER = " I see no image. I am a small demo model: send me an image and ask me to describe it."
ENDLESS: dict[str, Any] = {"repetition_penalty": 0.01, "temperature": 0}
"""Fields that make the model repeat itself, so that the answer never ends."""


def texts(plain_http: httpx.Client, prompt: str = HELLO, **fields: Any) -> list[str]:
    """Return the answer so far for each chunk."""
    answer = plain_http.post(GENERATE, json=request(prompt, **fields))
    assert answer.status_code == 200, answer.text
    found = list(chunks(iter([answer.content])))
    assert all(chunk["error_code"] == 0 and chunk["text"].startswith(prompt) for chunk in found)
    return [chunk["text"].removeprefix(prompt) for chunk in found]


def answer_to(plain_http: httpx.Client, prompt: str = HELLO, **fields: Any) -> str:
    return texts(plain_http, prompt, **fields)[-1]


def test_prompt_is_used_unchanged_and_null_fields_are_defaults(plain_http: httpx.Client) -> None:
    assert answer_to(plain_http) == ANSWER  # with its leading space: nothing is added to the prompt or removed
    assert answer_to(plain_http, images=[]) == ANSWER
    assert answer_to(plain_http, images=None, stop=None, model=None, top_k=None) == ANSWER


def test_image_gets_the_same_answer_as_in_a_chat(plain_http: httpx.Client) -> None:
    chat = plain_http.post("/v1/chat/completions", json=body(image(GRID), "Describe this image.")).json()
    answer = answer_to(plain_http, "USER: <image>\nDescribe this image. ASSISTANT:", images=[base64_of(GRID)])
    assert answer.strip() == chat["choices"][0]["message"]["content"] == describe([GRID])


def test_two_images_keep_their_order(plain_http: httpx.Client) -> None:
    prompt = llava_v1("<image>\n<image>\nDescribe these images.", None)
    for grids in ((GRID, OTHER), (OTHER, GRID)):
        assert answer_to(plain_http, prompt, images=[base64_of(grid) for grid in grids]).strip() == describe(grids)


def test_image_of_a_megabyte_is_answered(plain_http: httpx.Client) -> None:
    image = draw(GRID, (700, 700))
    data = base64.b64encode(encode(image, "BMP")).decode()
    assert len(data) > 1 << 20
    assert answer_to(plain_http, DESCRIBE, images=[data]).strip() == describe([GRID])


def test_metrics_count_text_image_and_completion_tokens(plain_http: httpx.Client, server: Server) -> None:
    """The responses of this API have no token counts; the metrics have."""
    prompt = llava_v1("<image>\n<image>\nDescribe these images.", None)
    whole = plain_http.post("/tokenize", json={"prompt": prompt, "images": ["data:,", "data:,"]}).json()
    before = tokens(server)
    assert answer_to(plain_http, prompt, images=[base64_of(GRID), base64_of(OTHER)], max_new_tokens=7) != ""
    expected = {"text": whole["count"] - 1152, "image": 1152, "completion": 7}
    wait_for(lambda: tokens_since(server, before) == expected, why=lambda: str(tokens_since(server, before)))


def test_max_new_tokens_and_its_default_limit_the_answer(plain_http: httpx.Client, server: Server) -> None:
    for length, expected in ((5, 5), (None, 256)):
        before = tokens(server)
        answer_to(plain_http, **ENDLESS, max_new_tokens=length)
        wait_for(lambda: tokens_since(server, before)["completion"] == expected)  # noqa: B023 # the wait ends within the iteration


def test_answer_is_limited_to_the_room_in_the_context(plain_http: httpx.Client, server: Server) -> None:
    prompt = "word " * 4080
    room = 4096 - plain_http.post("/tokenize", json={"prompt": prompt}).json()["count"]
    assert 0 < room < 20
    before = tokens(server)
    answer_to(plain_http, prompt, **ENDLESS)
    wait_for(lambda: tokens_since(server, before)["completion"] == room)
    assert answer_to(plain_http, max_new_tokens=1_000_000) == ANSWER
    refused(plain_http.post(GENERATE, json=request("word " * 4096)), 400, 1, "prompt", "4096")


def test_stop_string_ends_the_answer(plain_http: httpx.Client) -> None:
    until_model = ANSWER[: ANSWER.index("model")]
    assert answer_to(plain_http, stop="model") == until_model
    assert answer_to(plain_http, stop=["never", "model"]) == until_model
    assert all("mod" not in text for text in texts(plain_http, stop="model"))


@pytest.mark.parametrize("stop", ["", " ", [], ["", " "], "</s>", "###"])
def test_unmatched_stop_string_changes_nothing(plain_http: httpx.Client, stop: str | list[str]) -> None:
    assert answer_to(plain_http, stop=stop) == ANSWER


def test_temperature_top_p_and_top_k_select_greedy_decoding(plain_http: httpx.Client) -> None:
    for fields in ({"temperature": 0.001}, {"temperature": 2, "top_p": 0}, {"temperature": 2, "top_k": 1}):
        assert answer_to(plain_http, **fields) == ANSWER
    for top_k in (0, -1, 100):
        assert len({answer_to(plain_http, temperature=2, top_k=top_k, max_new_tokens=20) for _ in range(8)}) > 1


def test_fields_of_other_workers_are_ignored(plain_http: httpx.Client) -> None:
    assert (
        answer_to(plain_http, image_hashes=["x"], image_sizes=[[1, 2]], stream=True, echo=True, logprobs=None, conv_mode="llava_v1")
        == ANSWER
    )


def test_control_characters_and_other_scripts_come_back_unchanged(plain_http: httpx.Client) -> None:
    prompt = 'Zażółć 🦙 "quoted" \\ \x00 \n\t USER: Hello ASSISTANT:'
    assert texts(plain_http, prompt)


def test_silent_stream_gets_empty_chunks(plain_http: httpx.Client) -> None:
    """All text is held back for a long stop string; an empty chunk is sent every half second."""
    with plain_http.stream("POST", GENERATE, json=request(**ENDLESS, stop="x" * 10_000, max_new_tokens=400)) as answer:
        assert answer.headers["content-type"] == "application/octet-stream"
        raw = answer.read()
    assert raw.startswith(b"\0\0")
    assert len(list(chunks(iter([raw])))) == 1


def test_disconnect_frees_the_slot(plain_http: httpx.Client, server: Server) -> None:
    def status() -> dict[str, Any]:
        found: dict[str, Any] = plain_http.post("/worker_get_status").json()
        return found

    before = tokens(server)
    with plain_http.stream("POST", GENERATE, json=request(**ENDLESS, max_new_tokens=3500)) as answer:
        pieces = answer.iter_raw()
        assert next(pieces).endswith(b"\0")
        assert status() == {"model_names": [PAGE_NAME], "speed": 1, "queue_length": 1}
        assert server.metric("llava_requests_inside") == 1
    wait_for(lambda: server.metric("llava_requests_inside") == 0)
    assert status()["queue_length"] == 0
    assert tokens_since(server, before)["completion"] < 3500


def test_concurrent_requests_do_not_mix_up_images(plain_http: httpx.Client) -> None:
    colors = ("red", "green", "blue", "yellow", "purple", "orange", "black", "white")
    grids: list[Grid] = [(color, "red", "white", "blue") for color in colors]
    answers: dict[Grid, str] = {}

    def ask(grid: Grid) -> None:
        answers[grid] = answer_to(plain_http, DESCRIBE, images=[base64_of(grid)]).strip()

    threads = [threading.Thread(target=ask, args=(grid,)) for grid in grids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {grid: describe([grid]) for grid in grids}
