"""The requests of `ChatSambaStudio` (langchain-sambanova 0.2.0), and the parts of the answers that it reads."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from helpers.requests import MODEL, image_part
from helpers.sambastudio import GRID, PATH, STREAM, V2_PATH, V2_STREAM, base64_image, typed
from helpers.silent_engine import SilentEngine
from starlette.testclient import TestClient

from llava_gateway.app import create_app
from llava_gateway.demo import CHECKPOINT
from llava_gateway.model_info import ModelInfo
from llava_gateway.settings import Settings
from llava_gateway.tokenizer import Tokenizer
from llava_gateway.types import Delta, Prompt, SamplingParams, Usage

OPENAI_PATHS = ("/openai/v1/my-project/my-endpoint/chat/completions", "/v1/my-project/my-endpoint/chat/completions")
TOKENIZER = Tokenizer((CHECKPOINT / "tokenizer.json").read_text())
URI = f"data:image/png;base64,{base64_image(GRID)}"
MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Describe this image."}, image_part(URI)]},
]
ANSWER = "<s>Be brief. USER: <image>\nDescribe this image. ASSISTANT:"
CONVERSATION = json.dumps(
    {"conversation_id": "sambastudio-conversation-id", "messages": [{"message_id": None} | message for message in MESSAGES]}
)
PARAMS = {"select_expert": "llava-v1.5-7b", "process_prompt": True, "max_tokens_to_generate": 1024, "temperature": 0.7}
CHAT = {"messages": MESSAGES, "max_tokens": 1024, "temperature": 0.7, "stream_options": {"include_usage": True}}


class EchoEngine(SilentEngine):
    """Says its prompt."""

    async def start(self) -> ModelInfo:
        return dataclasses.replace(await super().start(), fingerprint="fp_test")

    async def generate(
        self,
        prompt: Prompt,
        sampling: SamplingParams,
        *,
        stream: bool,
        usage: Usage,
        on_delta: Callable[[Delta], None],
        on_text: Callable[[str, int], None] | None = None,
    ) -> None:
        usage.prompt_tokens, usage.completion_tokens = len(prompt.token_ids), 1
        on_delta(Delta(0, TOKENIZER.decode(prompt.token_ids), 1, "stop"))


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    settings = Settings(model=MODEL, model_alias=("other",))
    with TestClient(create_app(settings, engine=EchoEngine), "http://127.0.0.1") as client:
        while client.get("/ready").status_code != 200:
            pass
        yield client


def test_conversation_with_an_image_is_answered_by_the_generic_apis(client: TestClient) -> None:
    (prediction,) = client.post(PATH, json={"instances": [CONVERSATION], "params": typed(**PARAMS)}).json()["predictions"]
    assert prediction["completion"] == ANSWER
    (item,) = client.post(V2_PATH, json={"items": [{"id": "item0", "value": CONVERSATION}], "params": PARAMS}).json()["items"]
    assert (item["id"], item["value"]["completion"]) == ("item0", ANSWER)


def test_conversation_with_an_image_is_streamed_by_the_generic_apis(client: TestClient) -> None:
    lines = client.post(STREAM, json={"instance": CONVERSATION, "params": typed(**PARAMS)}).text.splitlines()
    responses = [json.loads(line)["result"]["responses"][0] for line in lines]
    assert "".join(response["stream_token"] for response in responses) == ANSWER
    assert [response["is_last_response"] for response in responses] == [False, True]
    lines = client.post(V2_STREAM, json={"items": [{"id": "item0", "value": CONVERSATION}], "params": PARAMS}).text.splitlines()
    assert "".join(json.loads(line)["result"]["items"][0]["value"]["stream_token"] for line in lines) == ANSWER


@pytest.mark.parametrize("path", OPENAI_PATHS)
def test_chat_completion_is_answered_although_it_has_stream_options(client: TestClient, path: str) -> None:
    response = client.post(path, json=CHAT | {"stream": False})
    assert response.status_code == 200, response.text
    completion = response.json()
    assert completion["choices"][0]["message"]["content"] == ANSWER
    assert {"id", "model", "system_fingerprint", "created", "usage"} <= set(completion)


@pytest.mark.parametrize("path", OPENAI_PATHS)
def test_chunk_with_the_finish_reason_has_a_content(client: TestClient, path: str) -> None:
    """The client takes an empty delta for the usage's chunk, and then fails on the usage's chunk, which has no choice."""
    *events, done = client.post(path, json=CHAT | {"stream": True}).text.split("\n\n")[:-1]
    assert done == "data: [DONE]"
    *chunks, usage = [json.loads(event.removeprefix("data: ")) for event in events]
    choices = [chunk["choices"][0] for chunk in chunks]
    assert "".join(choice["delta"]["content"] for choice in choices) == ANSWER
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["stop"]
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 1


@pytest.mark.parametrize(
    ("names", "model", "used"),
    [
        ("my-project/other", None, "other"),
        ("other/my-endpoint", None, "other"),
        ("my-project/my-endpoint", "other", "other"),
        ("my-project/my-endpoint", "llava-v1.5-7b", MODEL),
        (f"my-project/{MODEL}", "other", MODEL),
    ],
)
def test_path_names_the_model_before_the_field_does(client: TestClient, names: str, model: str | None, used: str) -> None:
    body = {"messages": [{"role": "user", "content": "Hello"}]} | ({"model": model} if model else {})
    assert client.post(f"/openai/v1/{names}/chat/completions", json=body).json()["model"] == used


def test_error_on_the_openai_path_has_openais_shape(client: TestClient) -> None:
    response = client.post(OPENAI_PATHS[0], json=CHAT | {"messages": []})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "messages"


def test_image_that_cannot_be_read_is_named_by_its_path_in_the_conversation(client: TestClient) -> None:
    text = json.dumps({"messages": [{"role": "user", "content": [image_part("data:image/png;base64,!!!!")]}]})
    response = client.post(PATH, json={"instances": ["Hello", text], "params": {"process_prompt": True}})
    assert response.status_code == 400
    assert response.json()["detail"].startswith("instances[0]: must be a JSON object with messages")
    response = client.post(PATH, json={"instances": [text], "params": {"process_prompt": True}})
    assert response.json()["detail"].startswith("instances[0].messages[0].content[0].image_url.url: ")
