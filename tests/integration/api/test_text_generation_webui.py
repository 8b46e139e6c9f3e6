"""text-generation-webui's API: prompts and chats with pictures in them, over HTTP and WebSockets, and stopping what is one's own."""

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import httpx
import pytest
from helpers.errors import LEAKS
from helpers.field_rows import rows
from helpers.requests import body, image, user
from helpers.server import ROOT, Server
from helpers.waiting import wait_for
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import ClientConnection, connect

from llava_gateway.api.schema import RequestBody
from llava_gateway.api.text_generation_webui.chat import GREETING, TEMPLATES, ChatBody, History
from llava_gateway.api.text_generation_webui.prompts import MAX_IMAGES, GenerateBody, TokenCountBody, split_at_images
from llava_gateway.api.text_generation_webui.router import ModelBody
from llava_gateway.api.text_generation_webui.running_answers import RunningAnswers
from llava_gateway.demo import CHECKPOINT
from llava_gateway.demo.images import Grid, data_uri, describe, draw, encode
from llava_gateway.errors import InvalidRequest
from llava_gateway.tokenizer import Tokenizer
from llava_gateway.types import ImageUrl, SamplingParams, StructuredOutput

API = "/api/v1"
GRID: Grid = ("red", "blue", "green", "orange")
OTHER: Grid = ("white", "yellow", "black", "purple")
GREEDY = {"do_sample": False, "repetition_penalty": 1.0}
HELLO = "USER: Hello ASSISTANT:"
ANSWER = " I see no image. I am a small demo model: send me an image and ask me to describe it."
ASK = "Describe this image."
DOCS = (ROOT / "docs" / "webui.md").read_text()
BODIES: list[type[BaseModel]] = [GenerateBody, ChatBody, History, TokenCountBody, ModelBody]


def tag(grid: Grid) -> str:
    return f'<img src="{data_uri(encode(draw(grid)))}">'.replace("image/png", "image/jpeg")  # the dialect's label, which lies


def asking(*pictures: str, text: str = ASK) -> str:
    return f"USER: {''.join(picture + chr(10) for picture in pictures)}{text} ASSISTANT:"


@pytest.fixture(scope="module")
def web(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=120) as client:
        yield client


def generate(web: httpx.Client, prompt: str, **fields: Any) -> str:
    answer = web.post(f"{API}/generate", json={"prompt": prompt} | GREEDY | fields)
    assert answer.status_code == 200, answer.text
    ((result,),) = answer.json().values()
    assert set(result) == {"text"}
    return str(result["text"])


def chat(web: httpx.Client, said: str = "", *turns: list[str], **fields: Any) -> list[list[str]]:
    """All turns after this one."""
    asked = {"user_input": said, "history": {"internal": list(turns), "visible": list(turns)}} | GREEDY | fields
    answer = web.post(f"{API}/chat", json=asked)
    assert answer.status_code == 200, answer.text
    ((result,),) = answer.json().values()
    history = result["history"]
    assert set(history) == {"internal", "visible"}
    assert history["visible"] == history["internal"]
    return list(history["internal"])


def tokens(web: httpx.Client, prompt: str, **fields: Any) -> int:
    return int(web.post(f"{API}/token-count", json={"prompt": prompt} | fields).json()["results"][0]["tokens"])


@contextmanager
def opened(server: Server, path: str, **options: Any) -> Iterator[ClientConnection]:
    with connect(f"ws{server.url.removeprefix('http')}{API}/{path}", max_size=None, **options) as socket:
        yield socket


def events(socket: ClientConnection, asked: Any) -> list[dict[str, Any]]:
    """Those that answer one message; the last is the stream's end."""
    socket.send(json.dumps(asked))
    return [*rest(socket)]


def rest(socket: ClientConnection) -> Iterator[dict[str, Any]]:
    while True:
        event = json.loads(socket.recv(timeout=60))
        yield event
        if event["event"] == "stream_end":
            return


def refused(answer: httpx.Response, status: int, param: str | None, code: str | None = None) -> str:
    assert answer.status_code == status, answer.text
    return is_error(answer.json(), param, code)


def is_error(answer: dict[str, Any], param: str | None, code: str | None = None) -> str:
    error = answer["error"]
    assert not LEAKS.search(str(error))
    assert set(error) == {"message", "param", "code"}
    assert error["param"] == param, error
    assert code is None or error["code"] == code
    return str(error["message"])


def inside(server: Server) -> float:
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    names = ("llava_requests_inside ", "vllm:num_requests_running")
    return sum(float(line.split()[-1]) for line in lines if line.startswith(names))


# What comes back


def test_text(web: httpx.Client) -> None:
    assert generate(web, HELLO) == ANSWER  # with its leading space: the prompt is the client's to the letter


def test_an_image(web: httpx.Client) -> None:
    assert generate(web, asking(tag(GRID))).strip() == describe([GRID])


def test_the_dialects_defaults_tell_the_truth_too(web: httpx.Client) -> None:
    answer = web.post(f"{API}/generate", json={"prompt": asking(tag(GRID))})
    assert answer.json()["results"][0]["text"].strip() == describe([GRID])


def test_the_last_image_alone_unless_all_are_asked_for(web: httpx.Client) -> None:
    two = asking(tag(GRID), tag(OTHER))
    assert generate(web, two).strip() == describe([OTHER])
    both = asking(tag(GRID), tag(OTHER), text="Describe these images.")
    assert generate(web, both, add_all_images_to_prompt=True).strip() == describe([GRID, OTHER])
    assert tokens(web, two, add_all_images_to_prompt=True) == tokens(web, two) + 576


def test_tokens_are_those_of_the_other_doors(web: httpx.Client) -> None:
    count = web.post("/tokenize", json={"prompt": asking("<image>"), "images": [data_uri(encode(draw(GRID)))]}).json()["count"]
    assert tokens(web, asking(tag(GRID))) == count
    assert tokens(web, HELLO) == 9
    assert tokens(web, HELLO, add_bos_token=False) == 8
    assert tokens(web, "") == 1
    assert tokens(web, asking('<img src="data:image/png;base64,nonsense">')) == count  # none is opened


def test_a_chat(web: httpx.Client) -> None:
    turns = chat(web, f"{tag(GRID)}\n{ASK}", mode="instruct")
    assert turns == [[f"{tag(GRID)}\n{ASK}", describe([GRID])]]
    turns = chat(web, "What color is the bottom right?", *turns)
    assert turns[1] == ["What color is the bottom right?", "Orange."]


def test_a_chat_sees_the_last_image_alone_unless_all_are_asked_for(web: httpx.Client) -> None:
    said = f"{tag(GRID)} {tag(OTHER)} Describe these images."
    assert chat(web, said, add_all_images_to_prompt=True)[0][1] == describe([GRID, OTHER])
    assert "Image 2" not in chat(web, said)[0][1]
    seen = [f"{tag(GRID)}{ASK}", describe([GRID])]
    assert chat(web, f"{tag(OTHER)}Describe these images.", seen, add_all_images_to_prompt=True)[1][1] == describe([GRID, OTHER])


@pytest.mark.parametrize(("name", "template"), TEMPLATES.items())
def test_instruction_templates_are_ours(web: httpx.Client, name: str, template: str) -> None:
    """Whatever the model makes of them, it makes the same through another door."""
    asked = body(image(GRID), ASK, chat_template=template, max_tokens=20)
    said = web.post("/v1/chat/completions", json=asked).json()["choices"][0]["message"]["content"]
    assert chat(web, f"{tag(GRID)}\n{ASK}", instruction_template=name, max_new_tokens=20)[0][1] == said


@pytest.mark.parametrize("name", ["LLaVA-v1", "Vicuna-v1.1", "llava-hf", "None", None])
def test_instruction_templates_that_the_model_knows(web: httpx.Client, name: str | None) -> None:
    assert chat(web, f"{tag(GRID)}\n{ASK}", instruction_template=name)[0][1] == describe([GRID])


def test_the_system_message(web: httpx.Client) -> None:
    def said(**fields: Any) -> str:
        return chat(web, "Hello", max_new_tokens=8, do_sample=True, temperature=1.5, seed=3, **fields)[0][1]

    def said_elsewhere(system: str) -> str:
        messages = [{"role": "system", "content": system}, user("Hello")]
        asked = {"model": "llava-demo", "messages": messages, "temperature": 1.5, "seed": 3, "max_tokens": 8}
        return str(web.post("/v1/chat/completions", json=asked).json()["choices"][0]["message"]["content"])

    one, other = "Describe the images: red, blue. " * 3, "What color is the top left? " * 3
    assert said_elsewhere(one) != said_elsewhere(other)
    assert said(mode="instruct", context_instruct=one, context=other) == said_elsewhere(one)
    assert said(mode="chat", context_instruct=one, context=other) == said_elsewhere(other)
    assert said(context_instruct=one) == said_elsewhere(one)


def test_regenerate_and_continue(web: httpx.Client) -> None:
    asked = f"{tag(GRID)}\n{ASK}"
    assert chat(web, "of no effect", [asked, "Wrong."], regenerate=True) == [[asked, describe([GRID])]]
    begun = describe([GRID])[:20]
    assert chat(web, "", [asked, begun], _continue=True) == [[asked, describe([GRID])]]
    assert chat(web, "", [asked, ""], _continue=True) == [[asked, describe([GRID])]]


def test_a_greeting_is_no_message_of_the_user(web: httpx.Client) -> None:
    greeted = [GREETING, "Hello! What shall I describe?"]
    turns = chat(web, "Hello", greeted, max_new_tokens=20)
    messages = [{"role": "assistant", "content": greeted[1]}, user("Hello")]
    asked = body() | {"messages": messages, "max_tokens": 20}
    assert turns[0] == greeted
    assert turns[1][1] == web.post("/v1/chat/completions", json=asked).json()["choices"][0]["message"]["content"]
    nothing = {"user_input": "", "history": {"internal": [greeted]}, "regenerate": True}
    refused(web.post(f"{API}/chat", json=nothing), 400, "regenerate")


def test_what_the_client_shows_is_kept_apart(web: httpx.Client) -> None:
    history = {"internal": [["Hello", "Hi"]], "visible": [["<b>Hello</b>", "<b>Hi</b>"]]}

    def visible(**fields: Any) -> Any:
        return web.post(f"{API}/chat", json={"history": history} | GREEDY | fields).json()["results"][0]["history"]["visible"]

    assert visible(user_input="Hello")[0] == ["<b>Hello</b>", "<b>Hi</b>"]
    assert visible(regenerate=True)[0][0] == "<b>Hello</b>"
    assert visible(_continue=True)[0][1].startswith("<b>Hi</b>")


def test_the_model(web: httpx.Client) -> None:
    assert web.get(f"{API}/model").json() == {"result": "llava-demo"}
    assert web.post(f"{API}/model", json={}).json() == {"result": "llava-demo"}
    assert web.post(f"{API}/model", json={"action": "list"}).json() == {"result": ["llava-demo"]}
    info = web.post(f"{API}/model", json={"action": "info"}).json()["result"]
    assert (info["model_name"], info["lora_names"], info["shared.settings"]["truncation_length"]) == ("llava-demo", [], 4096)
    for action in ("load", "unload", "x" * 1_000_000):
        assert len(refused(web.post(f"{API}/model", json={"action": action, "model_name": "x"}), 400, "action")) < 200


# How the answer is drawn


def test_fields_become_the_cores() -> None:
    tokenizer = Tokenizer((CHECKPOINT / "tokenizer.json").read_text())

    def sampling(**fields: Any) -> SamplingParams:
        return GenerateBody.parse({"prompt": ""} | fields).sampling(tokenizer)

    default = SamplingParams(max_tokens=200, temperature=0.5, repetition_penalty=1.1)
    assert sampling() == default
    assert sampling(**dict.fromkeys(GenerateBody.model_fields.keys() - {"prompt"})) == default  # null is as good as nothing
    documented = {"seed": -1, "top_p": 1, "min_p": 0, "top_k": 0, "typical_p": 1.0, "tfs": 1, "custom_token_bans": ""}
    assert sampling(**documented, truncation_length=2048, preset="None", stopping_strings=[], mirostat_tau=5) == default
    given = {"min_length": 2, "top_p": 0.5, "min_p": 0.1, "top_k": 7, "presence_penalty": 1, "frequency_penalty": -1, "seed": 5}
    assert sampling(
        **given, max_length=9, rep_pen=1.5, stopping_strings=["a", "b"], custom_token_bans=" 1, 2 ", skip_special_tokens=False
    ) == SamplingParams(
        max_tokens=9,
        min_tokens=2,
        temperature=0.5,
        top_p=0.5,
        min_p=0.1,
        top_k=7,
        presence_penalty=1,
        frequency_penalty=-1,
        repetition_penalty=1.5,
        seed=5,
        stop=("a", "b"),
        logit_bias={1: -100.0, 2: -100.0},
        skip_special_tokens=False,
    )
    both = sampling(max_new_tokens=7, max_length=9, repetition_penalty=1.2, rep_pen=1.5)
    assert (both.max_tokens, both.repetition_penalty) == (7, 1.2)
    assert sampling(auto_max_new_tokens=True).max_tokens is None
    assert sampling(do_sample=False, temperature=2).temperature == 0
    assert sampling(temperature=0).temperature == 0
    assert sampling(ban_eos_token=True).ignore_eos
    assert sampling(grammar_string="g").structured_output == StructuredOutput("grammar", "g", "grammar_string")


def test_the_engine_does_as_told(web: httpx.Client) -> None:
    assert generate(web, HELLO, stopping_strings=["demo", "small"]) == ANSWER.partition("small")[0]
    assert generate(web, HELLO, grammar_string='root ::= "yes" | "no"') in ("yes", "no")
    first = web.post("/tokenize", json={"prompt": HELLO + ANSWER}).json()["tokens"][tokens(web, HELLO)]
    assert not generate(web, HELLO, custom_token_bans=f"1, {first}").startswith(" I ")
    sampled = {"do_sample": True, "temperature": 2.0, "max_new_tokens": 30}
    assert generate(web, HELLO, seed=7, **sampled) == generate(web, HELLO, seed=7, **sampled)
    assert len({generate(web, HELLO, seed=seed, **sampled) for seed in (-1, -1, 1, 2)}) > 2
    long = generate(web, HELLO, ban_eos_token=True, max_new_tokens=100)
    assert long.startswith(ANSWER)
    assert len(long) > len(ANSWER)


# What is refused

FIELDS: list[tuple[dict[str, Any], str]] = [
    *(
        ({name: value}, name)
        for name, value in {
            "typical_p": 0.9,
            "typical": 0.9,
            "epsilon_cutoff": 1,
            "eta_cutoff": 1,
            "tfs": 0.5,
            "top_a": 0.1,
            "mirostat_mode": 2,
            "penalty_alpha": 0.6,
            "no_repeat_ngram_size": 3,
            "encoder_repetition_penalty": 1.1,
            "repetition_penalty_range": 64,
            "temperature_last": True,
            "guidance_scale": 1.5,
            "num_beams": 2,
            "length_penalty": 2,
            "early_stopping": True,
            "custom_stopping_strings": '"a"',
            "preset": "Mirostat",
        }.items()
    ),
    ({"max_new_tokens": 0}, "max_new_tokens"),
    ({"max_new_tokens": "200"}, "max_new_tokens"),
    ({"max_new_tokens": 2.5}, "max_new_tokens"),
    ({"max_length": True}, "max_length"),
    ({"auto_max_new_tokens": 1}, "auto_max_new_tokens"),
    ({"min_length": -1}, "min_length"),
    ({"min_length": 9, "max_new_tokens": 8}, "min_length"),
    ({"min_length": 201}, "min_length"),
    ({"do_sample": "false"}, "do_sample"),
    ({"temperature": "0"}, "temperature"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 5.1}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"min_p": 2}, "min_p"),
    ({"top_k": -1}, "top_k"),
    ({"top_k": 0.5}, "top_k"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"rep_pen": "1"}, "rep_pen"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"frequency_penalty": -3}, "frequency_penalty"),
    ({"seed": -2}, "seed"),
    ({"seed": 2**63}, "seed"),
    ({"stopping_strings": "a"}, "stopping_strings"),
    ({"stopping_strings": [5]}, "stopping_strings[0]"),
    ({"stopping_strings": ["a", ""]}, "stopping_strings[1]"),
    ({"stopping_strings": ["a"] * 65}, "stopping_strings"),
    ({"ban_eos_token": "no"}, "ban_eos_token"),
    ({"custom_token_bans": [1]}, "custom_token_bans"),
    ({"custom_token_bans": "1,,2"}, "custom_token_bans"),
    ({"custom_token_bans": "1,two"}, "custom_token_bans"),
    ({"custom_token_bans": ",".join("1" * 1025)}, "custom_token_bans"),
    ({"custom_token_bans": "1,640"}, "custom_token_bans[1]"),
    ({"skip_special_tokens": 0}, "skip_special_tokens"),
    ({"grammar_string": 5}, "grammar_string"),
    ({"grammar_string": "nonsense"}, "grammar_string"),
    ({"grammar_string": "x" * 70_000}, "grammar_string"),
    ({"grammar_string": 'root ::= "a"', "ban_eos_token": True}, "ban_eos_token"),
    ({"grammar_string": 'root ::= "a"', "min_length": 2}, "min_length"),
    ({"add_all_images_to_prompt": "yes"}, "add_all_images_to_prompt"),
]
PROMPTS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": None}, "prompt"),
    ({"prompt": 5}, "prompt"),
    ({"prompt": ["Hello"]}, "prompt"),
    ({"prompt": "data:image/png;base64," + "A" * 300_000}, "prompt"),
    ({"prompt": "<image>"}, "prompt"),
    ({"prompt": f"<image>{tag(GRID)}"}, "prompt"),
    ({"prompt": f"<ima{tag(GRID)}ge>{tag(GRID)}"}, "prompt"),
    ({"prompt": tag(GRID) * 8, "add_all_images_to_prompt": True}, "prompt"),
    ({"prompt": '<img src="data:">' * 1025}, "prompt"),
    ({"prompt": "word " * 5000}, "prompt"),
    ({"prompt": "x" * 1_000_000}, "prompt"),
    ({"prompt": "", "add_bos_token": False}, "prompt"),
    ({"prompt": "x", "max_new_tokens": 5000}, "prompt"),
    ({"add_bos_token": "yes"}, "add_bos_token"),
]
CHATS: list[tuple[dict[str, Any], str]] = [
    ({"user_input": None}, "user_input"),
    ({"user_input": ""}, "user_input"),
    ({"user_input": 5}, "user_input"),
    ({"user_input": GREETING}, "user_input"),
    ({"history": []}, "history"),
    ({"history": {"internal": "x"}}, "history.internal"),
    ({"history": {"internal": ["x"]}}, "history.internal[0]"),
    ({"history": {"internal": [["a"]]}}, "history.internal[0]"),
    ({"history": {"internal": [["a", "b", "c"]]}}, "history.internal[0]"),
    ({"history": {"internal": [["a", "b"], ["a", None]]}}, "history.internal[1][1]"),
    ({"history": {"internal": [["a", "b"]], "visible": []}}, "history.visible"),
    ({"history": {"internal": [["a", "b"]], "visible": [["a", 5]]}}, "history.visible[0][1]"),
    ({"history": {"internal": [["a", "b"]] * 1025}}, "history.internal"),
    ({"regenerate": True}, "regenerate"),
    ({"_continue": True}, "_continue"),
    ({"_continue": 1}, "_continue"),
    ({"regenerate": "yes"}, "regenerate"),
    ({"regenerate": True, "_continue": True, "history": {"internal": [["a", "b"]]}}, "_continue"),
    ({"mode": "story"}, "mode"),
    ({"instruction_template": "Alpaca"}, "instruction_template"),
    ({"instruction_template": "x" * 1_000_000}, "instruction_template"),
    ({"instruction_template": 5}, "instruction_template"),
    ({"context_instruct": 5}, "context_instruct"),
    ({"context": ["x"]}, "context"),
    ({"add_bos_token": False}, "add_bos_token"),
    ({"turn_template": "<|user|>"}, "turn_template"),
    ({"name1_instruct": "Me"}, "name1_instruct"),
    ({"name2_instruct": "You"}, "name2_instruct"),
    ({"user_input": "word " * 5000}, "history"),
    ({"user_input": '<img src="data:">' * 1025}, "user_input"),
]


@pytest.mark.parametrize(("fields", "param"), FIELDS + PROMPTS, ids=lambda value: str(value)[:60])
def test_prompts_that_are_refused(web: httpx.Client, fields: dict[str, Any], param: str) -> None:
    assert len(refused(web.post(f"{API}/generate", json={"prompt": HELLO} | fields), 400, param)) < 500


@pytest.mark.parametrize(("fields", "param"), FIELDS + CHATS, ids=lambda value: str(value)[:60])
def test_chats_that_are_refused(web: httpx.Client, fields: dict[str, Any], param: str) -> None:
    assert len(refused(web.post(f"{API}/chat", json={"user_input": "Hello"} | fields), 400, param)) < 500


@pytest.mark.parametrize(("fields", "param"), [*PROMPTS[:6], PROMPTS[8], PROMPTS[10], ({"add_bos_token": 1}, "add_bos_token")])
def test_counts_that_are_refused(web: httpx.Client, fields: dict[str, Any], param: str) -> None:
    refused(web.post(f"{API}/token-count", json={"prompt": HELLO} | fields), 400, param)


def test_missing_prompt(web: httpx.Client) -> None:
    for path in ("generate", "token-count"):
        refused(web.post(f"{API}/{path}", json={}), 400, "prompt")
    refused(web.post(f"{API}/chat", json={}), 400, "user_input")


PICTURE = encode(draw(GRID))
BROKEN = [
    ("data:image/jpeg;base64,!!!!", "invalid_base64_image"),
    ("data:image/jpeg;base64,", "empty_image_file"),
    ("data:nothing", "invalid_base64_image"),
    (data_uri(b"hello, world"), "invalid_image_format"),
    (data_uri(PICTURE[: len(PICTURE) // 2]), "invalid_image"),
    (data_uri(encode(draw(GRID, (1, 4000)))), "invalid_image"),
    (data_uri(encode(draw(GRID, (9000, 6000)))), "image_too_large"),
]


@pytest.mark.parametrize(("uri", "code"), BROKEN, ids=lambda value: value[:40])
def test_broken_images(web: httpx.Client, server: Server, uri: str, code: str) -> None:
    picture = f'<img src="{uri}">'
    refused(web.post(f"{API}/generate", json={"prompt": asking(picture)}), 400, "prompt", code)
    refused(web.post(f"{API}/chat", json={"user_input": picture}), 400, "user_input", code)
    history = {"internal": [["Hello", "Hi"], [picture, "Red."]]}
    refused(web.post(f"{API}/chat", json={"user_input": "Why?", "history": history}), 400, "history.internal[1][0]", code)
    with opened(server, "stream") as socket:
        error, _ = events(socket, {"prompt": asking(picture)})
        is_error(error, "prompt", code)


def test_an_earlier_image_is_not_even_opened(web: httpx.Client) -> None:
    assert generate(web, asking('<img src="data:image/png;base64,!!!!">', tag(GRID))).strip() == describe([GRID])


def test_a_picture_that_is_missing(web: httpx.Client) -> None:
    for prompt in (asking(), asking("<img>"), asking('<img src="">'), asking('<img src="/etc/passwd">')):
        assert "no image" in generate(web, prompt)


def test_bodies(web: httpx.Client, server: Server) -> None:
    json_type = {"content-type": "application/json"}
    refused(web.post(f"{API}/generate", content=b" " * (9 << 20), headers=json_type), 413, None)
    for content in (b"", b"{", b"[]", b'"x"', b"\xff", b"[" * 100_000):
        refused(web.post(f"{API}/chat", content=content, headers=json_type), 400, None)
    refused(web.post(f"{API}/generate", content=b"{}", headers={"content-type": "text/plain"}), 415, None)
    refused(web.get(f"{API}/generate"), 405, None, "method_not_allowed")
    refused(web.delete(f"{API}/model"), 405, None, "method_not_allowed")
    with opened(server, "stream") as socket:
        with pytest.raises(ConnectionClosedError) as closed:
            events(socket, {"prompt": " " * (9 << 20)})
        assert closed.value.rcvd is None or closed.value.rcvd.code == 1009  # a client that still sends may find the connection gone


def test_harmless_fields_are_taken(web: httpx.Client) -> None:
    """All that the documentation's own examples send, and what no version has had."""
    generation = {
        "auto_max_new_tokens": False,
        "max_tokens_second": 0,
        "preset": "None",
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 0.1,
    }
    generation |= {"typical_p": 1, "epsilon_cutoff": 0, "eta_cutoff": 0, "tfs": 1, "top_a": 0, "repetition_penalty": 1.18, "top_k": 40}
    generation |= {
        "repetition_penalty_range": 0,
        "min_length": 0,
        "no_repeat_ngram_size": 0,
        "num_beams": 1,
        "penalty_alpha": 0,
        "seed": -1,
    }
    generation |= {
        "length_penalty": 1,
        "early_stopping": False,
        "mirostat_mode": 0,
        "mirostat_tau": 5,
        "mirostat_eta": 0.1,
        "stopping_strings": [],
    }
    generation |= {"grammar_string": "", "guidance_scale": 1, "negative_prompt": "", "add_bos_token": True, "truncation_length": 2048}
    generation |= {
        "ban_eos_token": False,
        "custom_token_bans": "",
        "skip_special_tokens": True,
        "max_new_tokens": 250,
        "brand_new": {"a": 1},
    }
    persons = {"character": "Example", "your_name": "You", "regenerate": False, "_continue": False, "chat_instruct_command": "Continue."}
    asked = {"user_input": tag(GRID) + ASK, "history": {"internal": [], "visible": []}, "mode": "instruct"} | generation | persons
    answer = web.post(f"{API}/chat", json=asked | {"instruction_template": "Vicuna-v1.1"})
    assert answer.json()["results"][0]["history"]["visible"][0][1] == describe([GRID])
    answer = web.post(f"{API}/generate", json={"prompt": asking(tag(GRID))} | generation)
    assert answer.json()["results"][0]["text"].strip() == describe([GRID])


# Streams


def test_a_stream(server: Server) -> None:
    with opened(server, "stream") as socket:
        for _ in range(2):  # a connection may ask again
            *texts, end = events(socket, {"prompt": asking(tag(GRID))} | GREEDY)
            assert [event["event"] for event in texts] == ["text_stream"] * len(texts)
            assert [event["message_num"] for event in texts] == list(range(len(texts)))
            assert len(texts) > 5
            assert "".join(event["text"] for event in texts).strip() == describe([GRID])
            assert end == {"event": "stream_end", "message_num": len(texts)}


def test_a_stream_without_any_text(server: Server) -> None:
    with opened(server, "stream") as socket:
        text, end = events(socket, {"prompt": HELLO, "stopping_strings": [" "]} | GREEDY)
        assert (text["text"], end["message_num"]) == ("", 1)


def test_a_stream_of_a_chat(server: Server) -> None:
    asked = {"user_input": f"{tag(GRID)}\n{ASK}", "history": {"internal": [["Hello", "Hi"]], "visible": [["hello", "hi"]]}}
    with opened(server, "chat-stream") as socket:
        *told, end = events(socket, asked | GREEDY)
        answers = [event["history"]["visible"][1][1] for event in told]
        assert len(answers) > 5
        assert all(later.startswith(earlier) and later != earlier for earlier, later in pairwise(answers))
        assert all(event["history"]["internal"][0] == ["Hello", "Hi"] for event in told)
        assert all(event["history"]["visible"][0] == ["hello", "hi"] for event in told)
        assert [event["message_num"] for event in [*told, end]] == list(range(len(told) + 1))
        history = told[-1]["history"]
        regenerated = events(socket, {"history": history, "regenerate": True} | GREEDY)
        assert regenerated[-2]["history"] == history


def test_a_long_history_is_told_less_often(server: Server) -> None:
    """Five MB of it: at most two events in a second, and the answer is whole all the same."""
    asked = {
        "user_input": "Hello",
        "history": {"internal": [["Hello", "Hi"]], "visible": [["word " * 1_000_000, ""]]},
        "max_new_tokens": 100,
    }
    with opened(server, "chat-stream") as socket:
        start = time.monotonic()
        *told, _ = events(socket, asked | GREEDY | {"ban_eos_token": True})
        assert len(told) <= 2 + 2 * (time.monotonic() - start)
        del asked["history"]["visible"]  # type: ignore[attr-defined]
        *often, _ = events(socket, asked | GREEDY | {"ban_eos_token": True})
        assert len(often) > 50
        assert often[-1]["history"]["internal"] == told[-1]["history"]["internal"]


@pytest.mark.parametrize("message", ["", "{", "[]", "5", b"\xff\xfe", b"{}", '{"prompt": 5}'])
def test_a_bad_message_is_answered_and_the_next_one_too(server: Server, message: str | bytes) -> None:
    with opened(server, "stream") as socket:
        socket.send(message)
        error, end = rest(socket)
        assert error["event"] == "error"
        is_error(error, "prompt" if "prompt" in str(message) or message == b"{}" else None)
        assert end == {"event": "stream_end", "message_num": 0}
        assert events(socket, {"prompt": HELLO} | GREEDY)[-2]["text"]


@pytest.mark.parametrize(("path", "fields", "param"), [("stream", {"tfs": 0.5}, "tfs"), ("chat-stream", {"mode": 5}, "mode")])
def test_streams_that_are_refused(server: Server, path: str, fields: dict[str, Any], param: str) -> None:
    with opened(server, path) as socket:
        error, _ = events(socket, {"prompt": HELLO, "user_input": "Hello"} | fields)
        is_error(error, param)


ENDLESS = {"prompt": HELLO, "ban_eos_token": True, "max_new_tokens": 4000} | GREEDY


@pytest.mark.parametrize(("path", "asked"), [("stream", ENDLESS), ("chat-stream", ENDLESS | {"user_input": "Hello"})])
def test_who_leaves_frees_the_place(server: Server, path: str, asked: dict[str, Any]) -> None:
    with opened(server, path) as socket:
        socket.send(json.dumps(asked))
        assert json.loads(socket.recv(timeout=60))["event"] == "text_stream"
        assert inside(server) == 2  # here, and at the engine
    wait_for(lambda: inside(server) == 0)


def test_who_leaves_without_a_stream_frees_the_place(server: Server) -> None:
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}{API}/generate", json=ENDLESS, timeout=1)
    wait_for(lambda: inside(server) == 0)


# Stopping


@pytest.mark.parametrize(("path", "asked"), [("stream", ENDLESS), ("chat-stream", ENDLESS | {"user_input": "Hello"})])
def test_stop_ends_a_stream(web: httpx.Client, server: Server, path: str, asked: dict[str, Any]) -> None:
    with opened(server, path) as socket:
        socket.send(json.dumps(asked))
        assert json.loads(socket.recv(timeout=60))["message_num"] == 0
        assert web.post(f"{API}/stop-stream").json() == {"results": "success"}  # a body is of no use
        *texts, end = rest(socket)
        assert end["message_num"] == len(texts) + 1 < 2000
        wait_for(lambda: inside(server) == 0)
        assert len(events(socket, {"prompt": HELLO, "user_input": "Hello"} | GREEDY)) > 2  # and the next one runs to its end


def test_stop_ends_an_answer_that_is_no_stream(web: httpx.Client, server: Server) -> None:
    with ThreadPoolExecutor(2) as pool:
        text = pool.submit(generate, web, **ENDLESS)
        turns = pool.submit(chat, web, "Hello", ban_eos_token=True, max_new_tokens=4000)
        wait_for(lambda: inside(server) == 4)
        time.sleep(0.5)
        assert web.post(f"{API}/stop-stream", json={}).status_code == 200
        assert text.result(10).startswith(" I")  # with what there is
        assert turns.result(10)[0][0] == "Hello"
    wait_for(lambda: inside(server) == 0)


def test_stop_is_for_ones_own(web: httpx.Client, server: Server) -> None:
    with opened(server, "stream", source_address=("127.0.0.2", 0)) as mine, opened(server, "stream") as other:
        for socket in (mine, other):
            socket.send(json.dumps(ENDLESS))
            assert json.loads(socket.recv(timeout=60))["event"] == "text_stream"
        transport = httpx.HTTPTransport(local_address="127.0.0.2")
        with httpx.Client(base_url=server.url, transport=transport) as neighbour:
            assert neighbour.post(f"{API}/stop-stream").json() == {"results": "success"}
        assert [*rest(mine)][-1]["event"] == "stream_end"
        time.sleep(0.5)
        assert inside(server) == 2
        assert web.post(f"{API}/stop-stream").status_code == 200
        assert [*rest(other)][-1]["event"] == "stream_end"


def test_stop_with_nothing_to_stop(web: httpx.Client) -> None:
    assert web.post(f"{API}/stop-stream").json() == {"results": "success"}


def test_running() -> None:
    async def wait(running: RunningAnswers, caller: str) -> str:
        async with running.until_stopped(caller):
            await asyncio.sleep(60)
        return caller

    async def main() -> None:
        running = RunningAnswers()
        mine = [asyncio.create_task(wait(running, "me")) for _ in range(2)]
        other, leaver = (asyncio.create_task(wait(running, who)) for who in ("you", "me"))
        await asyncio.sleep(0)
        leaver.cancel()
        running.stop("me")
        running.stop("me")  # at once: nothing is told twice
        assert await asyncio.wait_for(asyncio.gather(*mine), 5) == ["me", "me"]
        with pytest.raises(asyncio.CancelledError):
            await leaver
        assert not other.done()
        running.stop("you")
        assert await asyncio.wait_for(other, 5) == "you"
        with pytest.raises(TimeoutError):  # another's timeout is not a stop
            async with running.until_stopped("me"):
                raise TimeoutError
        assert not running._clients

    asyncio.run(main())


# Pictures in texts

_texts = st.lists(
    st.one_of(st.text("<img src=\"data:',>", max_size=20), st.text(max_size=5), st.just('<img src="data:a,b" alt="c">')), max_size=9
)


@given(st.lists(_texts.map("".join), min_size=1, max_size=4), st.booleans())
def test_texts_are_taken_apart_and_nothing_is_lost(texts: list[str], every: bool) -> None:
    named = {f"texts[{number}]": text for number, text in enumerate(texts)}
    found = re.compile(r"""<img src=["'](data:[^"'<>]*)["'][^<>]*>""")
    images = [(name, uri) for name, text in named.items() for uri in found.findall(text)]
    taken = split_at_images(named, all_images=every)
    kept = [(piece.param, piece.url) for pieces in taken.values() for piece in pieces if isinstance(piece, ImageUrl)]
    assert kept == (images if every else images[-1:])
    assert {name: "".join(piece for piece in pieces if isinstance(piece, str)) for name, pieces in taken.items()} == {
        name: found.sub("", text) for name, text in named.items()
    }


def test_images_stay_where_they_are() -> None:
    text = "a<img src=\"data:1\">b<img src='data:2' alt='x'>c<img src=\"http://x/\">"
    assert split_at_images({"p": text}, all_images=True)["p"] == [
        "a",
        ImageUrl("data:1", "p"),
        "b",
        ImageUrl("data:2", "p"),
        'c<img src="http://x/">',
    ]


@pytest.mark.parametrize("text", ['<img src="data:' * MAX_IMAGES + "x" * 8_000_000, '<img src="data:x"' * MAX_IMAGES + " " * 8_000_000])
def test_hostile_texts_take_no_time(text: str) -> None:
    start = time.process_time()
    assert split_at_images({"p": text}, all_images=True)["p"] == [text]
    assert time.process_time() - start < 1


def test_very_many_images() -> None:
    with pytest.raises(InvalidRequest, match="at most 1024"):
        split_at_images({"p": "", "q": "<img src=" * (MAX_IMAGES + 1)}, all_images=False)


# What is said about it


def run(server: Server, name: str) -> list[str]:
    environment = os.environ | {"LLAVA_URL": server.url}
    command = [sys.executable, f"examples/{name}"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, env=environment)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()


FIRST = ("red", "blue", "green", "white")


def test_example(server: Server) -> None:
    truth = describe([FIRST])
    assert run(server, "webui.py") == ["model: llava-demo", "tokens: 587", f"generate: {truth}", f"chat: {truth}", "chat: Red."]


def test_example_of_streams(server: Server) -> None:
    assert [line.strip() for line in run(server, "webui_stream.py")] == [describe([FIRST]), "Red."]


@pytest.mark.parametrize("model", BODIES)
def test_docs_say_what_is_done_with_every_field(model: type[BaseModel]) -> None:
    for row in rows(model):
        assert row in DOCS, row


def test_docs_name_no_field_that_is_gone() -> None:
    named = set(re.findall(r"^\| `([\w-]+)` \| (?:honoured|ignored|refused) \|", DOCS, re.MULTILINE))
    declared = {row.split("`")[1] for model in BODIES for row in rows(model)}
    assert named == declared


def test_no_field_is_declared_twice() -> None:
    for model in BODIES:
        if issubclass(model, RequestBody):
            honoured = {field.alias or name for name, field in model.model_fields.items()}
            assert not honoured & model.refused.keys()
            assert not (honoured | model.refused.keys()) & model.ignored.keys()
