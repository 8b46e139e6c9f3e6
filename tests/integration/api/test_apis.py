"""The same image gets the same answer through every API, for the same tokens."""

import json
from typing import Any

import httpx
from helpers.requests import MODEL, image
from helpers.server import Server

from llava_gateway.demo.images import data_uri, describe, draw, encode
from llava_gateway.prompts.templates import CURIOUS_HUMAN

GRID = ("red", "blue", "green", "orange")
QUESTION = "Describe this image."
URI = data_uri(encode(draw(GRID)))
BASE64 = URI.partition(",")[2]
PROMPT = f"{CURIOUS_HUMAN} USER: <image>\n{QUESTION} ASSISTANT:"
"""The prompt that the other APIs write or send, and that the model's template makes of the system and user messages."""


def post(server: Server, path: str, body: dict[str, Any]) -> Any:
    answer = httpx.post(server.url + path, json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer


def openai(server: Server, prefix: str) -> tuple[str, int]:
    messages = [
        {"role": "system", "content": CURIOUS_HUMAN},
        {"role": "user", "content": [image(GRID), {"type": "text", "text": QUESTION}]},
    ]
    answer = post(server, f"{prefix}/chat/completions", {"model": MODEL, "messages": messages, "temperature": 0}).json()
    return answer["choices"][0]["message"]["content"], answer["usage"]["total_tokens"]


def anthropic(server: Server) -> tuple[str, int]:
    source = {"type": "base64", "media_type": "image/png", "data": BASE64}
    content = [{"type": "image", "source": source}, {"type": "text", "text": QUESTION}]
    body = {
        "model": MODEL,
        "max_tokens": 100,
        "system": CURIOUS_HUMAN,
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
    }
    answer = post(server, "/v1/messages", body).json()
    return answer["content"][0]["text"], sum(answer["usage"].values())


def ollama(server: Server, path: str, body: dict[str, Any]) -> tuple[str, int]:
    answer = post(server, path, {"model": MODEL, "stream": False, "options": {"temperature": 0}} | body).json()
    text = answer["response"] if "response" in answer else answer["message"]["content"]
    return text, answer["prompt_eval_count"] + answer["eval_count"]


def ollama_chat(server: Server) -> tuple[str, int]:
    messages = [{"role": "system", "content": CURIOUS_HUMAN}, {"role": "user", "content": QUESTION, "images": [BASE64]}]
    return ollama(server, "/api/chat", {"messages": messages})


def completions(server: Server) -> tuple[str, int]:
    answer = post(
        server, "/v1/completions", {"model": MODEL, "prompt": PROMPT, "images": [URI], "max_tokens": 100, "temperature": 0}
    ).json()
    return answer["choices"][0]["text"], answer["usage"]["total_tokens"]


def sambastudio(server: Server, path: str) -> tuple[str, int]:
    body = {"instances": [{"prompt": QUESTION, "image_content": BASE64}]}
    (prediction,) = post(server, path, body).json()["predictions"]
    assert prediction["prompt"] == PROMPT
    return prediction["completion"], prediction["total_tokens_count"]


def text_generation_webui(server: Server) -> tuple[str, int]:
    prompt = PROMPT.replace("<image>", f'<img src="{URI}">')
    body = {"prompt": prompt, "do_sample": False, "max_new_tokens": 100, "repetition_penalty": 1}
    text = post(server, "/api/v1/generate", body).json()["results"][0]["text"]
    return text, post(server, "/api/v1/token-count", {"prompt": prompt}).json()["results"][0]["tokens"]


def llava_worker(server: Server) -> tuple[str, int]:
    body = {"model": MODEL, "prompt": PROMPT, "images": [BASE64], "temperature": 0, "max_new_tokens": 100, "stop": "</s>"}
    *_, last = (json.loads(chunk) for chunk in post(server, "/worker_generate_stream", body).content.split(b"\0") if chunk)
    assert last["error_code"] == 0
    return last["text"].removeprefix(PROMPT), 0


def test_all_apis_give_the_same_answer_for_the_same_tokens(server: Server) -> None:
    answers = {
        "openai": openai(server, "/v1"),
        "deepinfra": openai(server, "/v1/openai"),
        "sambastudio_openai": openai(server, "/openai/v1/project/endpoint"),
        "anthropic": anthropic(server),
        "completions": completions(server),
        "ollama": ollama_chat(server),
        "ollama, generate": ollama(server, "/api/generate", {"prompt": QUESTION, "system": CURIOUS_HUMAN, "images": [BASE64]}),
        "ollama, raw": ollama(server, "/api/generate", {"prompt": PROMPT.replace("<image>", "[img-0]"), "raw": True, "images": [BASE64]}),
        "sambastudio": sambastudio(server, "/api/predict/generic/project/llava-demo"),
        "text_generation_webui": text_generation_webui(server),
        "llava_worker": llava_worker(server),
    }
    assert {name: text.strip() for name, (text, _) in answers.items()} == dict.fromkeys(answers, describe([GRID]))
    whole = {count for name, (_, count) in answers.items() if name not in ("text_generation_webui", "llava_worker")}
    assert len(whole) == 1
    usage = post(server, "/tokenize", {"prompt": PROMPT, "images": [URI]}).json()
    assert usage["image_tokens"] == 576
    assert answers["text_generation_webui"][1] == usage["count"] < whole.pop()
