"""Other LLaVA models on the real engine: an image takes as many tokens as Hugging Face's processor says."""

import base64
import io
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from helpers.requests import image_part, user
from helpers.server import Server, serve, wait_until_ready
from helpers.tiny_models import CONTEXT, TINY
from PIL import Image
from transformers import AutoProcessor

from llava_gateway.demo.images import data_uri, describe, draw, encode
from llava_gateway.memory.machine import has_amx

GRID = ("red", "blue", "green", "orange")
SIZES = [(1, 1), (30, 20), (336, 336), (640, 480), (480, 640), (1000, 10), (10, 1000), (1021, 677), (2000, 1237), (3001, 2003)]
LARGEST = (1152, 1407)
"""The size that takes the most tokens of OneVision."""
SMALL = ("--kv-cache-memory-bytes", str(128 << 20), "--mm-processor-cache-gb", "0.25")


class ServedModel:
    """A tiny model behind a server, and Hugging Face's processor for it."""

    def __init__(self, url: str, checkpoint: Path) -> None:
        self.http = httpx.Client(base_url=url, timeout=120)
        self.name = checkpoint.name
        self.processor = AutoProcessor.from_pretrained(checkpoint)

    def post(self, path: str, *images: str, **fields: Any) -> httpx.Response:
        message = user(*map(image_part, images), "What?")
        return self.http.post(path, json={"model": self.name, "messages": [message], **fields})

    def counted(self, *images: str) -> int:
        """Return the number of image tokens of a chat, after a check that `/tokenize` and `usage` agree."""
        tokenized = self.post("/tokenize", *images).json()
        usage = self.post("/v1/chat/completions", *images, max_tokens=2).json()["usage"]
        assert (tokenized["count"], tokenized["image_tokens"]) == (usage["prompt_tokens"], usage["prompt_tokens_details"]["image_tokens"])
        return int(tokenized["image_tokens"])

    def expected(self, *sizes: tuple[int, int]) -> int:
        """Return the number of image tokens that Hugging Face's processor makes of images of these sizes."""
        images = [Image.new("RGB", size) for size in sizes]
        (ids,) = self.processor(text="<image>" * len(sizes), images=images)["input_ids"]
        return list(ids).count(self.processor.tokenizer.convert_tokens_to_ids("<image>"))


@pytest.fixture(scope="module")
def starting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[Server, Path]]]:
    """A server of each model. All start at once, since a start is mostly imports, on one core."""
    with ExitStack() as servers:
        started = {}
        for name, make in TINY.items():
            checkpoint = tmp_path_factory.mktemp("models") / name
            make(checkpoint)
            (checkpoint / "generation_config.json").write_text('{"top_k": 1}')
            flags = ("--load-8bit",) if name == "onevision" and has_amx(Path("/")) else ()  # the others have quantized weights already
            server = serve(tmp_path_factory.mktemp("server"), *SMALL, *flags, model=str(checkpoint), wait=False)
            started[name] = servers.enter_context(server), checkpoint
        yield started


@pytest.fixture(scope="module", params=TINY)
def served(request: pytest.FixtureRequest, starting: dict[str, tuple[Server, Path]]) -> ServedModel:
    server, checkpoint = starting[request.param]
    wait_until_ready(server)
    return ServedModel(server.url, checkpoint)


def jpeg(size: tuple[int, int], orientation: int = 1) -> str:
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    draw(GRID, size).save(buffer, "JPEG", exif=exif)
    return data_uri(buffer.getvalue())


@pytest.mark.slow
def test_image_tokens_equal_those_of_the_models_processor(served: ServedModel) -> None:
    images = {size: data_uri(encode(draw(GRID, size))) for size in SIZES}
    counted = {size: served.counted(images[size]) for size in SIZES}
    assert counted == {size: served.expected(size) for size in SIZES}
    several = ((640, 480), (1021, 677), (640, 480)) if served.name == "next" else ((640, 480), (30, 20))
    assert served.counted(*(images[size] for size in several)) == served.expected(*several)
    assert served.counted(data_uri(encode(draw(GRID, LARGEST)))) == served.expected(LARGEST)
    assert served.counted(jpeg((4000, 3000))) == served.expected((4000, 3000))
    assert served.counted(jpeg((3000, 1700), orientation=6)) == served.expected((1700, 3000))  # stored turned by a quarter


MANY = {"bakllava": 50, "siglip": 40, "next": 20, "onevision": 20}
"""Small images that fit the context."""


def test_many_images_stay_where_they_stand_in_the_text(served: ServedModel) -> None:
    count = MANY[served.name]
    content = [part for number in range(count) for part in (f"Image {number}:", image_part(jpeg((60 + number, 40))))]
    asked = {"model": served.name, "messages": [user(*content, "Compare.")]}
    if served.name == "next":  # its template shows parts in their order, each image with a line break
        text = "[INST] " + "".join(f"Image {number}:<image>\n" for number in range(count)) + "Compare. [/INST]"
    else:
        text = "USER: " + "".join(f"Image {number}:\n<image>\n" for number in range(count)) + "Compare. ASSISTANT:"
    images = [Image.new("RGB", (60 + number, 40)) for number in range(count)]
    (expected,) = served.processor(text=text, images=images)["input_ids"]
    assert served.http.post("/tokenize", json=asked).json()["tokens"] == list(expected)
    usage = served.http.post("/v1/chat/completions", json=asked | {"max_tokens": 2}).json()["usage"]
    assert usage["prompt_tokens"] == len(expected)


def test_llava_worker_answers_with_as_many_tokens_as_asked_for(served: ServedModel) -> None:
    """The tokens of an image whose number depends on its size are counted once more after it is loaded."""
    image = encode(draw(GRID, (640, 480)))
    prompt = "USER: <image>\nHello ASSISTANT:"
    fields = {"temperature": 0, "top_k": 0, "repetition_penalty": 1.0}
    expected = served.http.post(
        "/v1/completions",
        json={"model": served.name, "prompt": prompt, "images": [data_uri(image)], "max_tokens": 8, "skip_special_tokens": False, **fields},
    ).json()
    assert expected["usage"]["completion_tokens"] > 1
    chunks = served.http.post(
        "/worker_generate_stream",
        json={"prompt": prompt, "images": [base64.b64encode(image).decode()], "max_new_tokens": 8, **fields},
    ).content.split(b"\0")
    *_, last = filter(None, chunks)
    assert json.loads(last) == {"text": prompt + expected["choices"][0]["text"], "error_code": 0}


def test_chat_beyond_the_context_is_refused_with_its_token_counts(served: ServedModel) -> None:
    size = (1344, 1344)
    tokens = served.expected(size)
    wanted = CONTEXT - tokens + 1
    refused = served.post("/v1/chat/completions", data_uri(encode(draw(GRID, size))), min_tokens=wanted, max_tokens=wanted)
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert f"{tokens} of images (1 x {tokens}) and {wanted} of answer" in error["message"]


def test_too_many_images_are_refused_before_a_fetch(served: ServedModel) -> None:
    nowhere = "http://192.0.2.1/image.png"
    error = served.post("/v1/chat/completions", *[nowhere] * 60).json()["error"]
    min_image_tokens = {"bakllava": 577, "siglip": 729, "next": 576, "onevision": 729}[served.name]
    has_grids = served.name in ("next", "onevision")
    or_more = " or more" if has_grids else ""
    assert error["code"] == "context_length_exceeded"
    assert f"resulted in {60 * min_image_tokens} tokens{or_more}." in error["message"]
    assert f"take {min_image_tokens} tokens{or_more} each, so at most {CONTEXT // min_image_tokens} images fit" in error["message"]
    counted = served.post("/tokenize", nowhere)
    assert counted.status_code == (400 if has_grids else 200)  # the image is fetched only if its size matters


def test_model_with_tiles_refuses_image_aspect_ratio(served: ServedModel) -> None:
    answer = served.post("/v1/chat/completions", data_uri(encode(draw(GRID, (60, 40)))), max_tokens=1, image_aspect_ratio="pad")
    sees_shapes = served.name in ("next", "onevision")
    assert answer.status_code == (400 if sees_shapes else 200)
    if sees_shapes:
        assert answer.json()["error"]["param"] == "image_aspect_ratio"


def test_models_generation_config_applies_where_the_client_sets_nothing(served: ServedModel) -> None:
    def answer(**fields: Any) -> str:
        return str(served.post("/v1/chat/completions", max_tokens=8, **fields).json()["choices"][0]["message"]["content"])

    greedy = answer(temperature=0)
    assert {answer() for _ in range(3)} == {greedy}
    assert len({answer(top_k=0, temperature=2, seed=seed) for seed in range(3)}) > 1


@pytest.mark.skipif(not has_amx(Path("/")), reason="vLLM's kernel for FP8 weights needs AMX")
def test_demo_model_sees_as_well_with_weights_of_8_bits(tmp_path: Path) -> None:
    with serve(tmp_path, "--load-8bit", "--dtype", "bfloat16") as server:
        message = user(image_part(data_uri(encode(draw(GRID, (336, 336))))), "Describe the image.")
        asked = httpx.post(f"{server.v1}/chat/completions", json={"messages": [message], "temperature": 0}, timeout=120)
        assert asked.json()["choices"][0]["message"]["content"] == describe([GRID])
