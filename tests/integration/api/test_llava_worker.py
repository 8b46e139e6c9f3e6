"""LLaVA's own stack: its web server and its `test_message`, written anew from what they send, and everything that they could send wrong."""

import asyncio
import base64
import json
import os
import re
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import httpx
import pytest
from helpers.errors import LEAKS
from helpers.field_rows import rows
from helpers.requests import MODEL, body, image
from helpers.server import ROOT, Server
from helpers.waiting import wait_for
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message

from llava_gateway.api.llava_worker import AddressRequest, ChunkRenderer, GenerateRequest, HeartBeat, render_error, to_completion
from llava_gateway.app import create_app
from llava_gateway.demo.images import Grid, describe, draw, encode
from llava_gateway.errors import EngineFailed, InvalidRequest, RequestTimeout, Unavailable
from llava_gateway.http.response import ResponseWriter
from llava_gateway.prompts.templates import CURIOUS_HUMAN
from llava_gateway.settings import Settings
from llava_gateway.types import Delta

GENERATE = "/worker_generate_stream"
GRID: Grid = ("red", "blue", "green", "orange")
OTHER: Grid = ("white", "yellow", "black", "purple")
HELLO = "USER: Hello ASSISTANT:"
ANSWER = " I see no image. I am a small demo model: send me an image and ask me to describe it."
ENDLESS: dict[str, Any] = {"repetition_penalty": 0.01, "temperature": 0}
"""So strong a pull to what has been said that the answer never ends."""
DOCS = (ROOT / "docs" / "llava.md").read_text()


def base64_of(grid: Grid) -> str:
    return base64.b64encode(encode(draw(grid))).decode()


def llava_v1(*turns: str | None) -> str:
    """Turns of user and assistant in turn; None: the answer that is asked for."""
    prompt = CURIOUS_HUMAN + " "
    for number, turn in enumerate(turns):
        role, end = ("ASSISTANT", "</s>") if number % 2 else ("USER", " ")
        prompt += f"{role}:" if turn is None else f"{role}: {turn}{end}"
    return prompt


DESCRIBE = llava_v1("<image>\nDescribe this image.", None)


def chunks(pieces: Iterator[bytes]) -> Iterator[dict[str, Any]]:
    """As `iter_lines(delimiter=b"\\0")` of requests has them, and the empty ones left out."""
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\0")
        yield from (json.loads(chunk) for chunk in whole if chunk)
    assert rest == b""


def asked(prompt: str = HELLO, **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": prompt, "temperature": 0} | fields


@pytest.fixture(scope="module")
def stack(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=120) as client:
        yield client


def texts(stack: httpx.Client, prompt: str = HELLO, **fields: Any) -> list[str]:
    """What each chunk brings of the answer."""
    answer = stack.post(GENERATE, json=asked(prompt, **fields))
    assert answer.status_code == 200, answer.text
    found = list(chunks(iter([answer.content])))
    assert all(chunk["error_code"] == 0 and chunk["text"].startswith(prompt) for chunk in found)
    return [chunk["text"].removeprefix(prompt) for chunk in found]


def say(stack: httpx.Client, prompt: str = HELLO, **fields: Any) -> str:
    return texts(stack, prompt, **fields)[-1]


def refused(answer: httpx.Response, status: int, error_code: int, *named: str) -> None:
    """One chunk that says what is wrong, and names the field."""
    assert answer.status_code == status, answer.text
    assert answer.content.endswith(b"\0")
    (chunk,) = chunks(iter([answer.content]))
    assert set(chunk) == {"text", "error_code"}
    assert chunk["error_code"] == error_code
    assert not LEAKS.search(chunk["text"])
    for name in named:
        assert name in chunk["text"]


def metric(server: Server, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", httpx.get(f"{server.url}/metrics", timeout=30).text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def tokens(server: Server) -> dict[str, float]:
    return {kind: metric(server, f'llava_tokens_total{{kind="{kind}"}}') for kind in ("text", "image", "completion")}


# LLaVA's clients


def web_server(controller: str, prompt: str, images: list[str], **fields: Any) -> Iterator[str]:
    """What LLaVA's Gradio web server does for a page and for a question: the answer as the page shows it, again and again."""
    assert httpx.post(f"{controller}/refresh_all_workers").status_code == 200
    models = httpx.post(f"{controller}/list_models").json()["models"]
    model = sorted(models)[0]
    worker = httpx.post(f"{controller}/get_worker_address", json={"model": model}).json()["address"]
    assert worker
    payload = {
        "model": model,
        "prompt": prompt,
        "temperature": 0.2,
        "top_p": 0.7,
        "max_new_tokens": min(512, 1536),
        "stop": "</s>",
        "images": images,
    }
    headers = {"User-Agent": "LLaVA Client"}
    with httpx.stream("POST", worker + GENERATE, headers=headers, json=payload | fields, timeout=60) as response:
        for chunk in chunks(response.iter_raw()):
            if chunk["error_code"]:
                yield chunk["text"] + f" (error_code: {chunk['error_code']})"
                return
            yield chunk["text"][len(prompt) :].strip()


def test_the_web_server_shows_an_answer_that_grows(server: Server) -> None:
    shown = list(web_server(server.url, DESCRIBE, [base64_of(GRID)]))
    assert shown[-1] == describe([GRID])
    assert len(shown) > 10
    assert all(later.startswith(earlier) for earlier, later in pairwise(shown))


def test_the_web_servers_later_turns_and_regenerate(server: Server) -> None:
    turns = llava_v1("<image>\nDescribe this image.", describe([GRID]), "What color is the bottom right?", None)
    for _ in range(2):
        *_, shown = web_server(server.url, turns, [base64_of(GRID)])
        assert shown == "Orange."


def test_the_web_server_shows_an_error(server: Server) -> None:
    (shown,) = web_server(server.url, DESCRIBE, ["!!!!"])
    assert shown == "images[0]: The image is not valid base64. (error_code: 1)"
    (shown,) = web_server(server.url, HELLO, [], max_new_tokens=0)  # as far left as its slider goes
    assert shown.startswith("max_new_tokens: ")


def test_test_message(server: Server) -> None:
    """It asks with the first separator of its template for a stop, a space, and does not ask for the assistant's turn."""
    prompt = llava_v1("Tell me a story with more than 1000 words.")
    payload = {"model": MODEL, "prompt": prompt, "max_new_tokens": 32, "temperature": 0.7, "stop": " "}
    before = tokens(server)
    with httpx.stream("POST", server.url + GENERATE, headers={"User-Agent": "LLaVA Client"}, json=payload, timeout=60) as response:
        found = list(chunks(response.iter_raw()))
    assert all(chunk["error_code"] == 0 and chunk["text"].startswith(prompt) for chunk in found)
    assert len(found) > 1
    assert 1 < tokens(server)["completion"] - before["completion"] <= 32


def test_the_example(server: Server) -> None:
    environment = os.environ | {"LLAVA_URL": server.url}
    command = (sys.executable, "examples/llava_worker.py")
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, env=environment)
    assert ended.returncode == 0, ended.stderr
    truth = describe([("red", "blue", "green", "white")])
    assert ended.stdout == f"models: {MODEL}\nworker: {server.url}\n{truth}\n"


# The worker


def test_text(stack: httpx.Client) -> None:
    assert say(stack) == ANSWER  # with its leading space: the prompt is the client's to the letter
    assert say(stack, images=[]) == ANSWER
    assert say(stack, images=None, stop=None, model=None, top_k=None) == ANSWER


def test_the_same_picture_gets_the_same_answer_as_in_a_chat(stack: httpx.Client) -> None:
    chat = stack.post("/v1/chat/completions", json=body(image(GRID), "Describe this image.")).json()
    answer = say(stack, "USER: <image>\nDescribe this image. ASSISTANT:", images=[base64_of(GRID)])
    assert answer.strip() == chat["choices"][0]["message"]["content"] == describe([GRID])


def test_two_images_in_order(stack: httpx.Client) -> None:
    prompt = llava_v1("<image>\n<image>\nDescribe these images.", None)
    for grids in ((GRID, OTHER), (OTHER, GRID)):
        assert say(stack, prompt, images=[base64_of(grid) for grid in grids]).strip() == describe(grids)


def test_an_image_of_a_megabyte(stack: httpx.Client) -> None:
    picture = draw(GRID, (700, 700))
    data = base64.b64encode(encode(picture, "BMP")).decode()
    assert len(data) > 1 << 20
    assert say(stack, DESCRIBE, images=[data]).strip() == describe([GRID])


def test_token_counts(stack: httpx.Client, server: Server) -> None:
    """The dialect says nothing of tokens; the metrics do."""
    prompt = llava_v1("<image>\n<image>\nDescribe these images.", None)
    whole = stack.post("/tokenize", json={"prompt": prompt, "images": ["data:,", "data:,"]}).json()
    before = tokens(server)
    assert say(stack, prompt, images=[base64_of(GRID), base64_of(OTHER)], max_new_tokens=7) != ""
    after = tokens(server)
    assert {kind: after[kind] - before[kind] for kind in after} == {"text": whole["count"] - 1152, "image": 1152, "completion": 7}


def test_length(stack: httpx.Client, server: Server) -> None:
    for length, expected in ((5, 5), (None, 256)):
        before = tokens(server)
        say(stack, **ENDLESS, max_new_tokens=length)
        assert tokens(server)["completion"] - before["completion"] == expected


def test_an_answer_takes_no_more_than_the_context_has_room_for(stack: httpx.Client, server: Server) -> None:
    prompt = "word " * 4080
    room = 4096 - stack.post("/tokenize", json={"prompt": prompt}).json()["count"]
    assert 0 < room < 20
    before = tokens(server)
    say(stack, prompt, **ENDLESS)
    assert tokens(server)["completion"] - before["completion"] == room
    assert say(stack, max_new_tokens=1_000_000) == ANSWER
    refused(stack.post(GENERATE, json=asked("word " * 4096)), 400, 1, "prompt", "4096")


def test_stop(stack: httpx.Client) -> None:
    until_model = ANSWER[: ANSWER.index("model")]
    assert say(stack, stop="model") == until_model
    assert say(stack, stop=["never", "model"]) == until_model
    assert all("mod" not in text for text in texts(stack, stop="model"))


@pytest.mark.parametrize("stop", ["", " ", [], ["", " "], "</s>", "###"])
def test_stops_that_do_not_come(stack: httpx.Client, stop: str | list[str]) -> None:
    assert say(stack, stop=stop) == ANSWER


def test_greedy(stack: httpx.Client) -> None:
    for fields in ({"temperature": 0.001}, {"temperature": 2, "top_p": 0}, {"temperature": 2, "top_k": 1}):
        assert say(stack, **fields) == ANSWER
    hot = {say(stack, temperature=2, top_k=top_k, max_new_tokens=20) for top_k in (0, -1, 100)}
    assert len(hot) == 3


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {"temperature": 1.0, "top_p": 1.0, "top_k": 50, "repetition_penalty": 1.0, "stop": ()}),
        ({"temperature": 0.7, "top_p": 0.9, "top_k": 5, "repetition_penalty": 1.1}, None),
        ({"temperature": 0}, {"temperature": 0.0}),
        ({"temperature": 0.0011}, None),
        ({"top_k": -1}, {"top_k": 0}),
        ({"stop": ["a", " ", "b "]}, {"stop": ("a", "b ")}),
    ],
    ids=str,
)
def test_how_fields_become_sampling(fields: dict[str, Any], expected: dict[str, Any] | None) -> None:
    sampling = to_completion(GenerateRequest.parse({"prompt": "x"} | fields), MODEL).sampling
    for name, value in (expected or fields).items():
        assert getattr(sampling, name) == value


def test_fields_of_other_workers_are_ignored(stack: httpx.Client) -> None:
    assert say(stack, image_hashes=["x"], image_sizes=[[1, 2]], stream=True, echo=True, logprobs=None, conv_mode="llava_v1") == ANSWER


def test_control_characters_and_other_scripts_come_back_as_they_were(stack: httpx.Client) -> None:
    prompt = 'Zażółć 🦙 "quoted" \\ \x00 \n\t USER: Hello ASSISTANT:'
    assert texts(stack, prompt)


@given(st.lists(st.text(st.characters(codec="utf-8")), min_size=1))
def test_every_chunk_is_json_and_ends_with_the_only_nul(pieces: list[str]) -> None:
    prompt, *deltas = pieces
    text = ChunkRenderer(prompt)
    for number, delta in enumerate(deltas, 2):
        chunk = text.render_delta(Delta(0, delta, 1, "stop"))
        assert chunk.index(b"\0") == len(chunk) - 1
        assert json.loads(chunk[:-1]) == {"text": "".join(pieces[:number]), "error_code": 0}


def test_a_silent_stream_is_kept_alive(stack: httpx.Client) -> None:
    """All text is held back for a long stop string; empty chunks go out every half second at the latest."""
    with stack.stream("POST", GENERATE, json=asked(**ENDLESS, stop="x" * 10_000, max_new_tokens=400)) as answer:
        assert answer.headers["content-type"] == "application/octet-stream"
        raw = answer.read()
    assert raw.startswith(b"\0\0")
    assert len(list(chunks(iter([raw])))) == 1


def test_a_client_that_leaves_frees_its_place(stack: httpx.Client, server: Server) -> None:
    def status() -> dict[str, Any]:
        found: dict[str, Any] = stack.post("/worker_get_status").json()
        return found

    before = tokens(server)
    with stack.stream("POST", GENERATE, json=asked(**ENDLESS, max_new_tokens=3500)) as answer:
        pieces = answer.iter_raw()
        assert next(pieces).endswith(b"\0")
        assert status() == {"model_names": [MODEL], "speed": 1, "queue_length": 1}
        assert metric(server, "llava_requests_inside") == 1
    wait_for(lambda: metric(server, "llava_requests_inside") == 0, 5)
    assert status()["queue_length"] == 0
    assert tokens(server)["completion"] - before["completion"] < 3500


def test_many_pictures_at_once_are_never_mixed_up(stack: httpx.Client) -> None:
    colors = ("red", "green", "blue", "yellow", "purple", "orange", "black", "white")
    grids: list[Grid] = [(color, "red", "white", "blue") for color in colors]
    answers: dict[Grid, str] = {}

    def ask(grid: Grid) -> None:
        answers[grid] = say(stack, DESCRIBE, images=[base64_of(grid)]).strip()

    threads = [threading.Thread(target=ask, args=(grid,)) for grid in grids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {grid: describe([grid]) for grid in grids}


# The controller


@pytest.mark.parametrize("content", [{}, {"json": {}}, {"content": b"whatever"}])
def test_paths_that_are_asked_without_a_body(stack: httpx.Client, content: dict[str, Any]) -> None:
    assert stack.post("/refresh_all_workers", **content).content == b"null"
    assert stack.post("/list_models", **content).json() == {"models": [MODEL]}
    assert stack.post("/worker_get_status", **content).json() == {"model_names": [MODEL], "speed": 1, "queue_length": 0}


def test_the_workers_address_is_the_one_that_the_client_came_by(stack: httpx.Client, server: Server) -> None:
    assert stack.post("/get_worker_address", json={"model": MODEL}).json() == {"address": server.url}
    named = stack.post("/get_worker_address", json={"model": MODEL}, headers={"host": "localhost:10000"})
    assert named.json() == {"address": "http://localhost:10000"}
    assert stack.post("/get_worker_address", json={"model": "gpt-5"}).json() == {"address": ""}


def test_no_other_worker_is_taken_for_registered(stack: httpx.Client, server: Server) -> None:
    status = {"model_names": ["other"], "speed": 1, "queue_length": 0}
    worker = {"worker_name": "http://localhost:21002", "check_heart_beat": True, "worker_status": status}
    refused(stack.post("/register_worker", json=worker), 400, 1, "controller")
    for name, exists in ((server.url, True), (f"{server.url}/", True), ("http://localhost:21002", False), ("", False)):
        assert stack.post("/receive_heart_beat", json={"worker_name": name, "queue_length": 0}).json() == {"exist": exists}
    assert stack.post("/list_models").json() == {"models": [MODEL]}


# What is refused


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": ["a"]}, "prompt"),
        ({"prompt": "A" * (1 << 18)}, "prompt"),
        ({"prompt": "word " * 50_000}, "prompt"),
        ({"model": 5}, "model"),
        ({"temperature": "0.2"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_p": -1}, "top_p"),
        ({"top_p": "1"}, "top_p"),
        ({"top_k": 1.5}, "top_k"),
        ({"top_k": -2}, "top_k"),
        ({"top_k": 1 << 31}, "top_k"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"repetition_penalty": "1"}, "repetition_penalty"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": -5}, "max_new_tokens"),
        ({"max_new_tokens": 512.5}, "max_new_tokens"),
        ({"max_new_tokens": "512"}, "max_new_tokens"),
        ({"max_new_tokens": True}, "max_new_tokens"),
        ({"stop": 5}, "stop"),
        ({"stop": "x" * 10_001}, "stop"),
        ({"stop": ["a", 5]}, "stop[1]"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": {"a": 1}}, "stop"),
        ({"images": "x"}, "images"),
        ({"images": [5]}, "images[0]"),
        ({"images": [None]}, "images[0]"),
        ({"images": [""]}, "images[0]"),
        ({"images": [{"url": "x"}]}, "images[0]"),
        ({"images": ["x"] * 1025}, "images"),
        ({"logprobs": True}, "logprobs"),
        ({"logprobs": 5}, "logprobs"),
        ({"echo": False}, "echo"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_bad_fields(stack: httpx.Client, fields: dict[str, Any], named: str) -> None:
    refused(stack.post(GENERATE, json=asked() | fields), 400, 1, named)


def test_a_prompt_that_is_missing(stack: httpx.Client) -> None:
    refused(stack.post(GENERATE, json={"model": MODEL}), 400, 1, "prompt")


def test_an_unknown_model_is_one_without_a_worker(stack: httpx.Client) -> None:
    refused(stack.post(GENERATE, json=asked(model="gpt-5")), 404, 2, "gpt-5")
    refused(stack.post(GENERATE, json=asked(model="")), 404, 2, "model")


PICTURE = encode(draw(GRID))


def bomb() -> bytes:
    """A PNG of some kilobytes that says it is 20000 x 20000."""
    head = PICTURE[12:16] + (20000).to_bytes(4) * 2 + PICTURE[24:29]
    return PICTURE[:12] + head + zlib.crc32(head).to_bytes(4) + PICTURE[33:]


@pytest.mark.parametrize(
    "data",
    [
        "!!!!",
        "http://127.0.0.1/x.png",
        "file:///etc/passwd",
        base64.b64encode(b"hello, world").decode(),
        base64.b64encode(PICTURE[: len(PICTURE) // 2]).decode(),
        base64.b64encode(bomb()).decode(),
    ],
    ids=["base64", "http", "file", "text", "short", "bomb"],
)
def test_broken_images(stack: httpx.Client, data: str) -> None:
    prompt = llava_v1("<image>\n<image>\nDescribe these images.", None)
    refused(stack.post(GENERATE, json=asked(prompt, images=[base64_of(GRID), data])), 400, 1, "images[1]")


def test_images_and_placeholders_are_as_many(stack: httpx.Client) -> None:
    refused(stack.post(GENERATE, json=asked(DESCRIBE)), 400, 1, "1 image placeholders", "0 images")
    refused(stack.post(GENERATE, json=asked(images=[base64_of(GRID)])), 400, 1, "0 image placeholders", "1 images")
    refused(stack.post(GENERATE, json=asked(DESCRIBE, images=[base64_of(GRID)] * 2)), 400, 1, "placeholders", "2 images")
    refused(stack.post(GENERATE, json=asked("<image>" * 8, images=[base64_of(GRID)] * 8)), 400, 1, "at most 7 images")


@pytest.mark.parametrize("path", [GENERATE, "/get_worker_address", "/receive_heart_beat"])
@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"model": "\\ud800"}'], ids=lambda value: value[:9]
)
def test_unparsable_bodies(stack: httpx.Client, path: str, content: bytes) -> None:
    refused(stack.post(path, content=content, headers={"content-type": "application/json"}), 400, 1)


def test_bodies_that_are_too_large(stack: httpx.Client) -> None:
    for path in (GENERATE, "/get_worker_address", "/receive_heart_beat"):
        refused(stack.post(path, content=b" " * (9 << 20), headers={"content-type": "application/json"}), 413, 1, "8 MiB")
    refused(stack.post(GENERATE, content=b"{}", headers={"content-type": "text/plain"}), 415, 1)


@pytest.mark.parametrize(
    ("path", "content", "named"),
    [
        ("/get_worker_address", {}, "model"),
        ("/get_worker_address", {"model": None}, "model"),
        ("/get_worker_address", {"model": [MODEL]}, "model"),
        ("/receive_heart_beat", {"queue_length": 0}, "worker_name"),
        ("/receive_heart_beat", {"worker_name": 5}, "worker_name"),
    ],
)
def test_bad_questions_to_the_controller(stack: httpx.Client, path: str, content: dict[str, Any], named: str) -> None:
    refused(stack.post(path, json=content), 400, 1, named)


def test_other_methods(stack: httpx.Client) -> None:
    for path in (GENERATE, "/list_models", "/get_worker_address"):
        refused(stack.get(path), 405, 1)


_json = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner, max_size=3))


@given(st.dictionaries(st.sampled_from(sorted(GenerateRequest.model_fields | GenerateRequest.refused)), _json))
def test_a_body_is_understood_or_refused(content: dict[str, Any]) -> None:
    try:
        request = to_completion(GenerateRequest.parse(content), MODEL)
    except InvalidRequest as error:
        assert error.param
        assert error.param in error.message
    else:
        assert request.prompt == content["prompt"]
        assert 0 <= request.sampling.temperature <= 2
        assert 0 < request.sampling.top_p <= 1


def test_a_model_that_still_loads_is_a_worker_out_of_reach() -> None:
    """Another controller that has this server for a worker is told so as well."""

    async def ask() -> list[httpx.Response]:
        app = create_app(Settings(model=MODEL), engine=lambda: pytest.fail("nobody starts the engine"))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
            return [await client.post(GENERATE, json=asked()), await client.post("/worker_get_status"), await client.post("/list_models")]

    generate, status, models = asyncio.run(ask())
    refused(generate, 503, 3, "loading")
    assert generate.headers["retry-after"] == "3"
    refused(status, 503, 3, "loading")
    assert models.json() == {"models": [MODEL]}


@pytest.mark.parametrize(
    ("error", "error_code"),
    [(EngineFailed("It failed."), 1), (RequestTimeout("It took too long."), 1), (Unavailable("It stops."), 3)],
    ids=str,
)
def test_an_error_after_the_stream_has_begun_is_its_last_chunk(error: Any, error_code: int) -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(render_error(error, ResponseWriter(send, started=True)))
    assert [message["type"] for message in sent] == ["http.response.body"] * 2
    assert [message.get("more_body", False) for message in sent] == [True, False]
    (chunk,) = chunks(message["body"] for message in sent)
    assert chunk == {"text": error.message, "error_code": error_code}


# The documentation


@pytest.mark.parametrize("model", [GenerateRequest, AddressRequest, HeartBeat])
def test_docs_say_what_is_done_with_every_field(model: Any) -> None:
    for row in rows(model):
        assert row in DOCS, row


def test_docs_name_no_field_that_is_gone() -> None:
    named = set(re.findall(r"^\| `([a-z_]+)` \| (?:honoured|ignored|refused) \|", DOCS, re.MULTILINE))
    assert named == {row.split("`")[1] for model in (GenerateRequest, AddressRequest, HeartBeat) for row in rows(model)}


def test_docs_name_every_path() -> None:
    app = create_app(Settings(model=MODEL, apis=("llava_worker",)), engine=lambda: pytest.fail("nobody starts the engine"))
    paths = {route.path for route in app.routes} - {"/health", "/ready", "/metrics"}  # type: ignore[attr-defined]
    assert {path for path in paths if f"`POST {path}`" not in DOCS} == set()
