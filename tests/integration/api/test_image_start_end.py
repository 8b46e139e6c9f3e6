"""A converted checkpoint that was trained with `mm_use_im_start_end`, on the real engine: images are wrapped through every API."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from helpers import original_checkpoints as originals
from helpers.original_prompts import IMAGE, added_tokens, original_ids
from helpers.requests import image_part, user
from helpers.server import serve

from llava_gateway.cli.convert import main
from llava_gateway.demo.images import data_uri, draw, encode
from llava_gateway.prompts.templates import CURIOUS_USER

TOKENS = 4
"""Tokens of an image: the tower sees 28 x 28 pixels in patches of 14 x 14."""
FILE = encode(draw(("red", "blue", "green", "orange")))
URI, BASE64 = data_uri(FILE), base64.b64encode(FILE).decode()
PROMPT = f"{CURIOUS_USER} USER: <image>\nWhat? ASSISTANT:"


class Tuned:
    """The served checkpoint."""

    def __init__(self, url: str, image_id: int, token_ids: list[int]) -> None:
        """`token_ids`: that LLaVA's code makes of PROMPT, with one token for the image."""
        self._http = httpx.Client(base_url=url, timeout=120)
        self.image_id = image_id
        self.token_ids = token_ids
        self.expanded = [each for token in token_ids for each in [token] * (TOKENS if token == image_id else 1)]

    def post(self, path: str, **fields: Any) -> Any:
        answer = self._http.post(path, json={"model": "tuned", **fields})
        assert answer.status_code == 200, answer.text
        return answer

    def scored(self, prompt: str | list[int]) -> tuple[list[str], list[float | None]]:
        """Return the tokens of a prompt with one image, and their log probabilities, as the engine computes them."""
        body = self.post("/v1/completions", prompt=prompt, images=[URI], echo=True, logprobs=0, max_tokens=0).json()
        logprobs = body["choices"][0]["logprobs"]
        return logprobs["tokens"], logprobs["token_logprobs"]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tuned]:
    source, checkpoint = tmp_path_factory.mktemp("original"), tmp_path_factory.mktemp("converted") / "tuned"
    originals.random_original(source, mm_use_im_start_end=True, mm_use_im_patch_token=True)
    pieces = originals.sentencepiece_tokenizer(source)
    added = added_tokens(start_end=True, patch_token=True)
    (source / "added_tokens.json").write_text(json.dumps(added))
    assert main([str(source), str(checkpoint)]) == 0
    image_id = json.loads((checkpoint / "config.json").read_bytes())["image_token_index"]
    token_ids = [image_id if each == IMAGE else each for each in original_ids(PROMPT, pieces, start_end=True, patch_token=True)]
    flags = ("--dtype", "float32", "--kv-cache-memory-bytes", str(64 << 20))
    with serve(tmp_path_factory.mktemp("server"), *flags, model=str(checkpoint)) as server:
        yield Tuned(server.url, image_id, token_ids)


def test_chat_and_prompt_have_the_token_ids_of_the_original(tuned: Tuned) -> None:
    messages = [user(image_part(URI), "What?")]
    for template in ({}, {"chat_template": "vicuna_v1"}):
        assert tuned.post("/tokenize", messages=messages, **template).json()["tokens"] == tuned.expanded
    assert tuned.post("/tokenize", prompt=PROMPT, images=[URI]).json()["tokens"] == tuned.expanded
    assert "<im_start>" in tuned.post("/tokenize", messages=messages, chat_template="chatml", return_token_strs=True).json()["token_strs"]


def test_every_api_counts_the_same_tokens(tuned: Tuned) -> None:
    chat = tuned.post("/v1/chat/completions", messages=[user(image_part(URI), "What?")], max_tokens=1).json()["usage"]
    completion = tuned.post("/v1/completions", prompt=PROMPT, images=[URI], max_tokens=1).json()["usage"]
    raw = PROMPT.replace("<image>", "[img-0]")
    ollama = tuned.post("/api/generate", prompt=raw, images=[BASE64], raw=True, stream=False, options={"num_predict": 1}).json()
    webui = tuned.post("/api/v1/token-count", prompt=PROMPT.replace("<image>", f'<img src="{URI}">')).json()
    assert {
        "chat": chat["prompt_tokens"],
        "completion": completion["prompt_tokens"],
        "Ollama, raw": ollama["prompt_eval_count"],
        "text-generation-webui": webui["results"][0]["tokens"],
    } == dict.fromkeys(("chat", "completion", "Ollama, raw", "text-generation-webui"), len(tuned.expanded))
    assert chat["prompt_tokens_details"]["image_tokens"] == completion["prompt_tokens_details"]["image_tokens"] == TOKENS


def test_sambastudio_shows_the_prompt_with_the_tokens(tuned: Tuned) -> None:
    instance = {"prompt": "What?", "image_content": BASE64}
    (prediction,) = tuned.post("/api/predict/generic/project/endpoint", instances=[instance]).json()["predictions"]
    assert "<im_start><image><im_end>" in prediction["prompt"]


def test_engine_reads_the_tokens_around_the_image(tuned: Tuned) -> None:
    """The engine's log probabilities are those of token ids that a client has wrapped, and not those of token ids without a wrapper."""
    tokens, logprobs = tuned.scored(PROMPT)
    assert len(tokens) == len(tuned.expanded)
    assert (tokens, logprobs) == tuned.scored(tuned.token_ids)
    start, end = (added_tokens(start_end=True, patch_token=True)[each] for each in ("<im_start>", "<im_end>"))
    plain = tuned.scored([each for each in tuned.token_ids if each not in (start, end)])
    assert len(plain[0]) == len(tokens) - 2
    assert plain[1][-1] != logprobs[-1]


def test_llava_worker_answers_to_the_wrapped_image(tuned: Tuned) -> None:
    fields = {"temperature": 0, "top_k": 0, "repetition_penalty": 1.0}
    prompt = {"prompt": tuned.token_ids, "images": [URI], "max_tokens": 8, "skip_special_tokens": False}
    expected = tuned.post("/v1/completions", **prompt, **fields).json()["choices"][0]["text"]
    chunks = tuned.post("/worker_generate_stream", prompt=PROMPT, images=[BASE64], max_new_tokens=8, **fields).content.split(b"\0")
    *_, last = filter(None, chunks)
    assert json.loads(last) == {"text": PROMPT + expected, "error_code": 0}
