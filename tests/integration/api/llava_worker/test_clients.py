"""LLaVA's own clients: its web server and its `test_message`, rewritten from the requests that they send."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import httpx
from helpers.documentation import run_example
from helpers.llava_worker import GENERATE, GRID, PAGE_NAME, base64_of, chunks, llava_v0, llava_v1, page_template, tokens, tokens_since
from helpers.requests import MODEL
from helpers.server import Server
from helpers.waiting import wait_for

from llava_gateway.demo.images import describe

TEMPLATES = {"llava_v0": (llava_v0, "###"), "llava_v1": (llava_v1, "</s>")}
"""LLaVA's conversation templates by name: a function that writes the prompt, and the stop string."""
DESCRIBE = "<image>\nDescribe this image."


def web_server(controller: str, turns: list[str], images: list[str], **fields: Any) -> Iterator[str]:
    """Send the requests that LLaVA's Gradio web server sends for a question, and yield the text that its page shows after each chunk.

    `turns`: of the user and the model in alternation. The page chooses the form of the prompt by the name of the model.
    """
    assert httpx.post(f"{controller}/refresh_all_workers", timeout=60).status_code == 200
    models = httpx.post(f"{controller}/list_models", timeout=60).json()["models"]
    model = sorted(models)[0]
    worker = httpx.post(f"{controller}/get_worker_address", json={"model": model}, timeout=60).json()["address"]
    assert worker
    write, stop = TEMPLATES[page_template(model)]
    prompt = write(*turns, None)
    payload = {
        "model": model,
        "prompt": prompt,
        "temperature": 0.2,
        "top_p": 0.7,
        "max_new_tokens": min(512, 1536),
        "stop": stop,
        "images": images,
    }
    headers = {"User-Agent": "LLaVA Client"}
    with httpx.stream("POST", worker + GENERATE, headers=headers, json=payload | fields, timeout=60) as response:
        for chunk in chunks(response.iter_raw()):
            if chunk["error_code"]:
                yield chunk["text"] + f" (error_code: {chunk['error_code']})"
                return
            yield chunk["text"][len(prompt) :].strip()


def test_llava_web_server_shows_a_growing_answer(server: Server) -> None:
    shown = list(web_server(server.url, [DESCRIBE], [base64_of(GRID)]))
    assert shown[-1] == describe([GRID])
    assert len(shown) > 1
    assert all(later.startswith(earlier) for earlier, later in pairwise(shown))


def test_llava_web_server_gets_the_same_answer_to_a_later_turn_twice(server: Server) -> None:
    turns = [DESCRIBE, describe([GRID]), "What color is the bottom right?"]
    for _ in range(2):
        *_, shown = web_server(server.url, turns, [base64_of(GRID)])
        assert shown == "Orange."


def test_llava_web_server_shows_the_error_message(server: Server) -> None:
    (shown,) = web_server(server.url, [DESCRIBE], ["!!!!"])
    assert shown == "images[0]: The image is not valid base64. (error_code: 1)"
    (shown,) = web_server(server.url, ["Hello"], [], max_new_tokens=0)  # the lowest value of the page's slider
    assert shown.startswith("max_new_tokens: ")


def test_llava_test_message_gets_a_stream_of_chunks(server: Server) -> None:
    """`test_message` sends its template's first separator, a space, as the stop string, and no assistant turn at the end."""
    prompt = llava_v1("Tell me a story with more than 1000 words.")
    payload = {"model": MODEL, "prompt": prompt, "max_new_tokens": 32, "temperature": 0.7, "stop": " "}
    before = tokens(server)
    with httpx.stream("POST", server.url + GENERATE, headers={"User-Agent": "LLaVA Client"}, json=payload, timeout=60) as response:
        found = list(chunks(response.iter_raw()))
    assert all(chunk["error_code"] == 0 and chunk["text"].startswith(prompt) for chunk in found)
    assert len(found) > 1
    wait_for(lambda: tokens_since(server, before)["completion"] > 1)
    assert tokens_since(server, before)["completion"] <= 32


def test_llava_worker_example_runs(server: Server) -> None:
    truth = describe([("red", "blue", "green", "white")])
    assert run_example(server, "llava_worker.py") == [f"models: {PAGE_NAME}", f"worker: {server.url}", truth]
