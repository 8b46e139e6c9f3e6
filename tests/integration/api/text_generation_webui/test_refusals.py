"""text-generation-webui's API: wrong fields, broken images and bad bodies get an error that names the field."""

from typing import Any

import httpx
import pytest
from helpers.server import Server
from helpers.text_generation_webui import API, GRID, HELLO, events, is_error, open_stream, prompt_about, refused, tag
from websockets.exceptions import ConnectionClosedError

from llava_gateway.api.text_generation_webui.chat import (
    GREETING,
)
from llava_gateway.demo.images import data_uri, draw, encode

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
    ({"max_new_tokens": "2.5"}, "max_new_tokens"),
    ({"max_new_tokens": 2.5}, "max_new_tokens"),
    ({"max_length": True}, "max_length"),
    ({"auto_max_new_tokens": 1}, "auto_max_new_tokens"),
    ({"min_length": -1}, "min_length"),
    ({"min_length": 9, "max_new_tokens": 8}, "min_length"),
    ({"min_length": 201}, "min_length"),
    ({"do_sample": "no"}, "do_sample"),
    ({"temperature": "NaN"}, "temperature"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 5.1}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"min_p": 2}, "min_p"),
    ({"top_k": -1}, "top_k"),
    ({"top_k": 0.5}, "top_k"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"rep_pen": "0"}, "rep_pen"),
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
def test_bad_prompt_field_is_named_in_the_error(plain_http: httpx.Client, fields: dict[str, Any], param: str) -> None:
    assert len(refused(plain_http.post(f"{API}/generate", json={"prompt": HELLO} | fields), 400, param)) < 500


@pytest.mark.parametrize(("fields", "param"), FIELDS + CHATS, ids=lambda value: str(value)[:60])
def test_bad_chat_field_is_named_in_the_error(plain_http: httpx.Client, fields: dict[str, Any], param: str) -> None:
    assert len(refused(plain_http.post(f"{API}/chat", json={"user_input": "Hello"} | fields), 400, param)) < 500


@pytest.mark.parametrize(("fields", "param"), [*PROMPTS[:6], PROMPTS[8], PROMPTS[10], ({"add_bos_token": 1}, "add_bos_token")])
def test_bad_token_count_field_is_named_in_the_error(plain_http: httpx.Client, fields: dict[str, Any], param: str) -> None:
    refused(plain_http.post(f"{API}/token-count", json={"prompt": HELLO} | fields), 400, param)


def test_missing_prompt_is_refused(plain_http: httpx.Client) -> None:
    for path in ("generate", "token-count"):
        refused(plain_http.post(f"{API}/{path}", json={}), 400, "prompt")
    refused(plain_http.post(f"{API}/chat", json={}), 400, "user_input")


IMAGE = encode(draw(GRID))
BROKEN = [
    ("data:image/jpeg;base64,!!!!", "invalid_base64_image"),
    ("data:image/jpeg;base64,", "empty_image_file"),
    ("data:nothing", "invalid_base64_image"),
    (data_uri(b"hello, world"), "invalid_image_format"),
    (data_uri(IMAGE[: len(IMAGE) // 2]), "invalid_image"),
    (data_uri(encode(draw(GRID, (1, 4000)))), "invalid_image"),
    (data_uri(encode(draw(GRID, (9000, 6000)))), "image_too_large"),
]


@pytest.mark.parametrize(("uri", "code"), BROKEN, ids=lambda value: value[:40])
def test_broken_image_is_named_in_the_error(plain_http: httpx.Client, server: Server, uri: str, code: str) -> None:
    image = f'<img src="{uri}">'
    refused(plain_http.post(f"{API}/generate", json={"prompt": prompt_about(image)}), 400, "prompt", code)
    refused(plain_http.post(f"{API}/chat", json={"user_input": image}), 400, "user_input", code)
    history = {"internal": [["Hello", "Hi"], [image, "Red."]]}
    refused(plain_http.post(f"{API}/chat", json={"user_input": "Why?", "history": history}), 400, "history.internal[1][0]", code)
    with open_stream(server, "stream") as socket:
        error, _ = events(socket, {"prompt": prompt_about(image)})
        is_error(error, "prompt", code)


def test_malformed_body_and_wrong_method_are_refused(plain_http: httpx.Client, server: Server) -> None:
    json_type = {"content-type": "application/json"}
    refused(plain_http.post(f"{API}/generate", content=b" " * (9 << 20), headers=json_type), 413, None)
    for content in (b"", b"{", b"[]", b'"x"', b"\xff", b"[" * 100_000):
        refused(plain_http.post(f"{API}/chat", content=content, headers=json_type), 400, None)
    refused(plain_http.post(f"{API}/generate", content=b"{}", headers={"content-type": "text/plain"}), 415, None)
    refused(plain_http.get(f"{API}/generate"), 405, None, "method_not_allowed")
    refused(plain_http.delete(f"{API}/model"), 405, None, "method_not_allowed")
    with open_stream(server, "stream") as socket:
        with pytest.raises(ConnectionClosedError) as closed:
            events(socket, {"prompt": " " * (9 << 20)})
        assert closed.value.rcvd is None or closed.value.rcvd.code == 1009  # a client that still sends may find a closed connection
