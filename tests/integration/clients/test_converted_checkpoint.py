"""Converted checkpoints on the real engine give the same tokens as the demo model, and as transformers' model with the same weights."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from helpers import original_checkpoints as originals
from helpers.conversion import convert_demo
from helpers.requests import image, image_part, user
from helpers.server import Server, serve
from helpers.twins import TOKENS, twin, write_original
from PIL import Image
from transformers import AutoProcessor

from llava_gateway.cli.convert import main
from llava_gateway.demo.images import Grid, data_uri, draw, encode
from llava_gateway.prompts.templates import CURIOUS_USER

GRID: Grid = ("red", "blue", "green", "white")


@pytest.fixture(scope="module")
def converted_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    converted = convert_demo(tmp_path_factory.mktemp("converted"))
    with serve(
        tmp_path_factory.mktemp("server"), "--dtype", "float32", "--kv-cache-memory-bytes", str(64 << 20), model=str(converted)
    ) as started:
        yield started


def test_converted_model_gives_the_same_tokens_as_the_demo_model(server: Server, converted_server: Server) -> None:
    """The answers are greedy. The demo's request has a system prompt, as its template has none."""
    demo, converted = (openai.OpenAI(base_url=each.v1, api_key="none", max_retries=0) for each in (server, converted_server))
    system: Any = {"role": "system", "content": CURIOUS_USER}
    first, second = image(("red", "blue", "green", "white")), image(("yellow", "black", "orange", "purple"))
    for message in (
        user(first, "Describe this image."),
        user(first, second, "Describe these images."),
        user(second, "What color is the top left?"),
        user("Hello"),
    ):
        said = []
        for client, model, messages in ((demo, "llava-demo", [system, message]), (converted, "my model", [message])):
            answer: Any = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=200, logprobs=True)
            tokens = [token.token for token in answer.choices[0].logprobs.content]
            said.append((tokens, answer.usage.prompt_tokens, answer.choices[0].finish_reason))
        assert said[0] == said[1]
        assert len(said[0][0]) > 1


def test_image_is_padded_as_by_the_original(converted_server: Server) -> None:
    """A crop would lose the left and right ends of a wide image."""
    client = openai.OpenAI(base_url=converted_server.v1, api_key="none", max_retries=0)
    answers = []
    for ratio in (None, "pad", "crop"):
        wide = originals.wide_image()
        extra = {"image_aspect_ratio": ratio} if ratio else {}
        answer = client.chat.completions.create(
            model="my model",
            messages=[user(wide, "Describe this image.")],
            temperature=0,
            max_tokens=60,
            extra_body=extra,
        )
        answers.append(answer.choices[0].message.content)
    assert answers[0] == answers[1] != answers[2]


@pytest.fixture(scope="module")
def next_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    """A server of a LLaVA-1.6 on Yi that was converted, and the checkpoint."""
    folder = tmp_path_factory.mktemp("next")
    write_original(folder / "llava-v1.6-34b", twin("yi", is_next=True), "yi", is_next=True)
    assert main([str(folder / "llava-v1.6-34b"), str(folder / "yi")]) == 0
    flags = ("--dtype", "float32", "--kv-cache-memory-bytes", str(64 << 20), "--mm-processor-cache-gb", "0.25")
    with serve(tmp_path_factory.mktemp("server"), *flags, model=str(folder / "yi")) as started:
        yield started, folder / "yi"


@pytest.mark.slow
def test_converted_llava_1_6_gives_the_same_tokens_as_transformers(next_server: tuple[Server, Path]) -> None:
    """The answers are greedy. The model is the one that the original was written from, not the converted one."""
    server, checkpoint = next_server
    processor, model = AutoProcessor.from_pretrained(checkpoint), twin("yi", is_next=True)
    client = openai.OpenAI(base_url=server.v1, api_key="none", max_retries=0)
    suppressed = list(range(TOKENS, model.config.text_config.vocab_size))
    answers = set()
    for size in (None, (28, 28), (40, 13), (20, 80)):
        picture = encode(draw(GRID, size)) if size else b""
        parts = [{"type": "image"}] if size else []
        prompt = processor.apply_chat_template(
            [{"role": "user", "content": [*parts, {"type": "text", "text": "What is this?"}]}], add_generation_prompt=True
        )
        images = {"images": Image.open(io.BytesIO(picture))} if size else {}
        inputs = processor(text=prompt, return_tensors="pt", **images)
        with torch.no_grad():
            ids = model.generate(**inputs, max_new_tokens=12, do_sample=False, suppress_tokens=suppressed, eos_token_id=7)[0]
        wanted = ids[inputs["input_ids"].shape[1] :]
        message = user(*([image_part(data_uri(picture))] if size else []), "What is this?")
        answer: Any = client.chat.completions.create(
            model="yi", messages=[message], temperature=0, max_tokens=12, extra_body={"return_token_ids": True}
        )
        assert answer.usage.prompt_tokens == inputs["input_ids"].shape[1]
        assert answer.choices[0].token_ids == wanted.tolist()
        answers.add(tuple(wanted.tolist()))
    assert len(answers) > 1
