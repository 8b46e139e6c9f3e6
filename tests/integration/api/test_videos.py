"""Videos on the real engine: a video takes as many tokens as Hugging Face's processor says, and stays at its place in the prompt."""

import asyncio
import base64
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from helpers.requests import body, image_part, user
from helpers.server import ROOT, Server, serve, wait_until_ready
from helpers.tiny_models import CONTEXT, next_video, onevision
from helpers.videos import all_frames, video
from openai import OpenAI
from PIL import Image
from transformers import AutoProcessor

from llava_gateway.demo.images import data_uri, describe, draw, encode, random_grid
from llava_gateway.images.geometry import VideoTokens
from llava_gateway.images.loader import ImageLoader
from llava_gateway.model_info import VideoConfig
from llava_gateway.settings import Settings
from llava_gateway.types import PreparedVideo, VideoUrl
from llava_gateway.videos.loader import VideoLoader

MODELS = {"onevision": onevision, "next_video": next_video}
VIDEO_FRAMES = 64
"""The setting of the servers."""
MAX_FRAMES = {"onevision": min(VIDEO_FRAMES, (CONTEXT // 2 - 1) // 196), "next_video": min(VIDEO_FRAMES, CONTEXT // 2 // 144)}
FLAGS = ("--kv-cache-memory-bytes", str(128 << 20), "--mm-processor-cache-gb", "0.25", "--video-frames", str(VIDEO_FRAMES))
NOWHERE = "http://192.0.2.1/video.mp4"
SHORT, LONG = video(7), video(100, size=(90, 160))
PICTURE = draw(("red", "blue", "green", "orange"), (500, 300))


def video_uri(data: bytes) -> str:
    return "data:video/mp4;base64," + base64.b64encode(data).decode()


def video_part(url: str) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": url}}


class ServedModel:
    """A tiny model behind a server, and Hugging Face's processor for it."""

    def __init__(self, server: Server, checkpoint: Path) -> None:
        self.server = server
        self.http = httpx.Client(base_url=server.url, timeout=120)
        self.name = checkpoint.name
        self.processor: Any = AutoProcessor.from_pretrained(checkpoint)
        self.video_id = self.processor.tokenizer.convert_tokens_to_ids("<video>")

    def post(self, path: str, *content: Any, **fields: Any) -> httpx.Response:
        return self.http.post(path, json={"model": self.name, "messages": [user(*content)], **fields})

    def sampled(self, data: bytes) -> np.ndarray[Any, Any]:
        """Return the frames that transformers samples."""
        frames = all_frames(data)
        total, count = len(frames), min(len(frames), MAX_FRAMES[self.name])
        return np.stack([frames[int(index)] for index in np.arange(0, total, total / count)])

    def expected(self, *videos: bytes) -> int:
        """Return the number of video tokens that Hugging Face's processor makes."""
        (ids,) = self.processor(text="<video>" * len(videos), videos=[self.sampled(data) for data in videos])["input_ids"]
        return list(ids).count(self.video_id)


@pytest.fixture(scope="module")
def starting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[Server, Path]]]:
    """A server of each model. Both start at once, since a start is mostly imports, on one core."""
    with ExitStack() as servers:
        started = {}
        for name, make in MODELS.items():
            checkpoint = tmp_path_factory.mktemp("models") / name
            make(checkpoint)
            server = serve(tmp_path_factory.mktemp("server"), *FLAGS, model=str(checkpoint), wait=False)
            started[name] = servers.enter_context(server), checkpoint
        yield started


@pytest.fixture(scope="module", params=MODELS)
def served(request: pytest.FixtureRequest, starting: dict[str, tuple[Server, Path]]) -> ServedModel:
    server, checkpoint = starting[request.param]
    wait_until_ready(server)
    return ServedModel(server, checkpoint)


@pytest.fixture(scope="module")
def with_images(starting: dict[str, tuple[Server, Path]]) -> ServedModel:
    """LLaVA-OneVision, which takes images and videos."""
    server, checkpoint = starting["onevision"]
    wait_until_ready(server)
    return ServedModel(server, checkpoint)


@pytest.mark.parametrize("data", [video(1), SHORT, video(32, "webm", "libvpx", size=(64, 200)), LONG], ids=["1", "7", "32", "100"])
def test_video_tokens_equal_those_of_the_models_processor(served: ServedModel, data: bytes) -> None:
    content = video_part(video_uri(data)), "What?"
    tokenized = served.post("/tokenize", *content).json()
    usage = served.post("/v1/chat/completions", *content, max_tokens=2).json()["usage"]
    details = usage["prompt_tokens_details"]
    assert (tokenized["count"], tokenized["video_tokens"]) == (usage["prompt_tokens"], details["video_tokens"])
    assert tokenized["video_tokens"] == tokenized["tokens"].count(served.video_id) == served.expected(data)
    assert details["text_tokens"] == tokenized["count"] - tokenized["video_tokens"]


def test_chat_beyond_the_context_is_refused_with_its_token_counts(served: ServedModel) -> None:
    tokens = served.expected(SHORT)
    wanted = CONTEXT - tokens + 1
    content = video_part(video_uri(SHORT)), "What?"
    error = served.post("/v1/chat/completions", *content, min_tokens=wanted, max_tokens=wanted).json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert f"{tokens} of videos (1 x {tokens}) and {wanted} of answer" in error["message"]


def test_image_video_and_text_become_the_prompt_of_the_models_processor(with_images: ServedModel) -> None:
    content = "Compare.", image_part(data_uri(encode(PICTURE))), video_part(video_uri(SHORT))
    chat = [{"role": "user", "content": [{"type": "text", "text": "Compare."}, {"type": "image"}, {"type": "video"}]}]
    text = with_images.processor.apply_chat_template(chat, add_generation_prompt=True)
    media = {"images": [PICTURE], "videos": [with_images.sampled(SHORT)]}
    tokenized = with_images.post("/tokenize", *content).json()
    assert tokenized["tokens"] == list(with_images.processor(text=text, **media)["input_ids"][0])
    usage = with_images.post("/v1/chat/completions", *content, max_tokens=1).json()["usage"]
    assert usage["prompt_tokens"] == tokenized["count"]
    assert usage["prompt_tokens_details"]["image_tokens"] == tokenized["image_tokens"] > 0


def test_prompt_with_both_placeholders_keeps_their_order(with_images: ServedModel) -> None:
    prompt = "USER: First <video> then <image> and <video>. ASSISTANT:"
    body = {"model": with_images.name, "prompt": prompt, "images": [data_uri(encode(PICTURE))]}
    body["videos"] = [video_uri(SHORT), video_uri(video(3))]
    media = {"images": [PICTURE], "videos": [with_images.sampled(SHORT)]}
    tokens = with_images.http.post("/tokenize", json=body).json()["tokens"]
    first_two = list(with_images.processor(text=prompt.rpartition(" and")[0], **media)["input_ids"][0])
    assert tokens[: len(first_two)] == first_two
    assert tokens.count(with_images.video_id) == with_images.expected(SHORT) + with_images.expected(video(3))
    completion = with_images.http.post("/v1/completions", json=body | {"max_tokens": 1}).json()
    assert completion["usage"]["prompt_tokens"] == len(tokens)


def test_same_video_is_prepared_once(served: ServedModel) -> None:
    data = video(5, rate=5)
    answers = [served.post("/v1/chat/completions", video_part(video_uri(data)), text, max_tokens=1).json() for text in ("a", "b", "a")]
    assert all(answer["usage"]["prompt_tokens_details"]["video_tokens"] for answer in answers)
    assert answers[2]["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    before = served.server.metric('llava_videos_total{source="decoded"}')
    served.post("/v1/chat/completions", video_part(video_uri(data)), "c", max_tokens=1)
    assert served.server.metric('llava_videos_total{source="decoded"}') == before
    assert served.server.metric('llava_tokens_total{kind="video"}') > 0


def test_model_that_takes_only_one_video_refuses_images_and_further_videos(starting: dict[str, tuple[Server, Path]]) -> None:
    server, checkpoint = starting["next_video"]
    wait_until_ready(server)
    served = ServedModel(server, checkpoint)
    for content, words in (
        ((video_part(NOWHERE), image_part(NOWHERE)), "takes videos and no images"),
        ((video_part(NOWHERE), video_part(NOWHERE)), "at most 1 video"),
    ):
        refused = served.post("/v1/chat/completions", *content, "What?", max_tokens=1)
        kind = "image_url" if "images" in words else "video_url"
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, f"messages[0].content[1].{kind}.url")
        assert words in refused.json()["error"]["message"]


def test_model_without_videos_says_which_models_take_them(plain_http: httpx.Client) -> None:
    for path in ("/v1/chat/completions", "/tokenize"):
        error = plain_http.post(path, json=body(video_part(NOWHERE), "What?")).json()["error"]
        assert error["param"] == "messages[0].content[0].video_url.url"
        assert "LLaVA-OneVision and LLaVA-NeXT-Video" in error["message"]


def test_responses_and_decisions_take_videos(with_images: ServedModel) -> None:
    tokens = with_images.expected(SHORT)
    content = [{"type": "input_video", "video_url": video_uri(SHORT)}, {"type": "input_text", "text": "What?"}]
    request = {"model": with_images.name, "input": [{"role": "user", "content": content}], "max_output_tokens": 16}
    first = with_images.http.post("/v1/responses", json=request).json()
    assert first["usage"]["input_tokens_details"]["video_tokens"] == tokens
    more = {"model": with_images.name, "input": "And?", "previous_response_id": first["id"], "max_output_tokens": 16}
    assert with_images.http.post("/v1/responses", json=more).json()["usage"]["input_tokens_details"]["video_tokens"] == tokens
    questions = [{"type": "predicate", "instructions": "Is it red?"}, {"type": "predicate", "instructions": "Is it blue?"}]
    decided = with_images.http.post(
        "/v1/decisions", json={"model": with_images.name, "input": request["input"], "questions": questions}
    ).json()
    assert decided["usage"]["input_tokens_details"]["video_tokens"] == 2 * tokens


def test_example_runs(with_images: ServedModel, tmp_path: Path) -> None:
    (tmp_path / "video.mp4").write_bytes(SHORT)
    environment = os.environ | {"OPENAI_BASE_URL": with_images.server.v1}
    command = [sys.executable, "examples/video.py", str(tmp_path / "video.mp4")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, env=environment)
    assert f"{with_images.expected(SHORT)} for the video" in ended.stdout


def test_frames_of_a_video_are_told_one_by_one(client: OpenAI) -> None:
    """The demo model sees images. A frame at a wrong time, or with wrong colours, gets a wrong description."""
    rng = random.Random(24)
    grids = [random_grid(rng) for _ in range(4)]
    pictures = [np.asarray(draw(grid, (448, 336))) for grid in grids for _ in range(5)]
    options = {"crf": "10", "preset": "ultrafast"}

    async def load() -> PreparedVideo:
        settings = Settings(model="m")
        images = ImageLoader(settings)
        videos = VideoLoader(settings, images)
        config = VideoConfig(336, "crop", VideoTokens(576, 0), max_frames=4)
        try:
            (loaded,) = await videos.load((VideoUrl(video_uri(video(pictures, options=options)), "video"),), config)
            return loaded
        finally:
            await videos.close()
            await images.close()

    frames = asyncio.run(load()).frames
    told = []
    for frame in frames:
        picture = image_part(data_uri(encode(Image.fromarray(frame))))
        told.append(client.chat.completions.create(**body(picture, "Describe this image.")).choices[0].message.content)
    assert told == [describe([grid]) for grid in grids]
