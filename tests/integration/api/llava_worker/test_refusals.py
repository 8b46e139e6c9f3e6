"""LLaVA's worker API: wrong fields, broken images and bad bodies get one chunk with the error."""

import base64
import zlib
from typing import Any

import httpx
import pytest
from helpers.llava_worker import DESCRIBE, GENERATE, GRID, base64_of, llava_v1, refused, request
from helpers.requests import MODEL

from llava_gateway.demo.images import draw, encode


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": ["a"]}, "prompt"),
        ({"prompt": "A" * (1 << 18)}, "prompt"),
        ({"prompt": "word " * 50_000}, "prompt"),
        ({"model": 5}, "model"),
        ({"temperature": "cold"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_p": -1}, "top_p"),
        ({"top_p": "NaN"}, "top_p"),
        ({"top_k": 1.5}, "top_k"),
        ({"top_k": -2}, "top_k"),
        ({"top_k": 1 << 31}, "top_k"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"repetition_penalty": "0"}, "repetition_penalty"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": -5}, "max_new_tokens"),
        ({"max_new_tokens": 512.5}, "max_new_tokens"),
        ({"max_new_tokens": "512.5"}, "max_new_tokens"),
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
def test_bad_field_is_named_in_the_error(plain_http: httpx.Client, fields: dict[str, Any], named: str) -> None:
    refused(plain_http.post(GENERATE, json=request() | fields), 400, 1, named)


def test_missing_prompt_is_refused(plain_http: httpx.Client) -> None:
    refused(plain_http.post(GENERATE, json={"model": MODEL}), 400, 1, "prompt")


def test_unknown_model_gets_the_error_code_of_a_missing_worker(plain_http: httpx.Client) -> None:
    refused(plain_http.post(GENERATE, json=request(model="gpt-5")), 404, 2, "gpt-5")
    refused(plain_http.post(GENERATE, json=request(model="")), 404, 2, "model")


IMAGE = encode(draw(GRID))


def pixel_bomb() -> bytes:
    """Return a PNG of some kilobytes that declares 20000 x 20000 pixels."""
    head = IMAGE[12:16] + (20000).to_bytes(4) * 2 + IMAGE[24:29]
    return IMAGE[:12] + head + zlib.crc32(head).to_bytes(4) + IMAGE[33:]


@pytest.mark.parametrize(
    "data",
    [
        "!!!!",
        "http://127.0.0.1/x.png",
        "file:///etc/passwd",
        base64.b64encode(b"hello, world").decode(),
        base64.b64encode(IMAGE[: len(IMAGE) // 2]).decode(),
        base64.b64encode(pixel_bomb()).decode(),
    ],
    ids=["base64", "http", "file", "text", "short", "bomb"],
)
def test_broken_image_is_named_in_the_error(plain_http: httpx.Client, data: str) -> None:
    prompt = llava_v1("<image>\n<image>\nDescribe these images.", None)
    refused(plain_http.post(GENERATE, json=request(prompt, images=[base64_of(GRID), data])), 400, 1, "images[1]")


def test_numbers_of_images_and_placeholders_must_agree(plain_http: httpx.Client) -> None:
    refused(plain_http.post(GENERATE, json=request(DESCRIBE)), 400, 1, "1 image placeholders", "0 images")
    refused(plain_http.post(GENERATE, json=request(images=[base64_of(GRID)])), 400, 1, "0 image placeholders", "1 images")
    refused(plain_http.post(GENERATE, json=request(DESCRIBE, images=[base64_of(GRID)] * 2)), 400, 1, "placeholders", "2 images")
    refused(plain_http.post(GENERATE, json=request("<image>" * 8, images=[base64_of(GRID)] * 8)), 400, 1, "at most 7 images")


@pytest.mark.parametrize("path", [GENERATE, "/get_worker_address", "/receive_heart_beat"])
@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"model": "\\ud800"}'], ids=lambda value: value[:9]
)
def test_body_that_is_not_a_json_object_is_refused(plain_http: httpx.Client, path: str, content: bytes) -> None:
    refused(plain_http.post(path, content=content, headers={"content-type": "application/json"}), 400, 1)


def test_large_body_and_wrong_media_type_are_refused(plain_http: httpx.Client) -> None:
    for path in (GENERATE, "/get_worker_address", "/receive_heart_beat"):
        refused(plain_http.post(path, content=b" " * (9 << 20), headers={"content-type": "application/json"}), 413, 1, "8 MiB")
    refused(plain_http.post(GENERATE, content=b"{}", headers={"content-type": "text/plain"}), 415, 1)
