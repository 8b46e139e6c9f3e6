"""Requests with videos that a model cannot take are refused before a video is fetched, and loaded videos are counted exactly."""

import dataclasses
import pickle
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.prompts import model_info, video_model_info

from llava_gateway.errors import ContextLengthExceeded, InvalidRequest
from llava_gateway.model_info import ModelInfo
from llava_gateway.prompts.renderer import PromptRenderer
from llava_gateway.serving.prepare import PreparedMedia, PreparedRequest, apply_media_tokens, prepare
from llava_gateway.settings import AspectRatio, Settings
from llava_gateway.types import ChatRequest, ImageUrl, Message, PreparedVideo, Prompt, SamplingParams, Text, VideoUrl

MODEL = video_model_info()


def prepared(model: ModelInfo, *parts: str, max_tokens: int | None = None, aspect_ratio: AspectRatio | None = None) -> PreparedRequest:
    """Prepare a chat. `parts`: "image", "video", or a text."""
    content = tuple(
        ImageUrl("data:,", f"content[{index}]")
        if part == "image"
        else VideoUrl("data:,", f"content[{index}]")
        if part == "video"
        else Text(part)
        for index, part in enumerate(parts)
    )
    request = ChatRequest(
        model="m",
        messages=(Message("user", content),),
        image_aspect_ratio=aspect_ratio,
        sampling=SamplingParams(max_tokens=max_tokens),
    )
    served: Any = SimpleNamespace(prompts=PromptRenderer(model))
    return prepare(request, served, model, "vicuna_v1", Settings(model="m"))


def video(frames: int) -> PreparedVideo:
    return PreparedVideo(np.zeros((frames, 1, 1, 3), np.uint8), "digest", (1, 1), 1.0, 100 * frames + 1)


@pytest.mark.parametrize(
    ("model", "parts", "param", "words"),
    [
        (model_info(), ("image", "video"), "content[1]", "LLaVA-OneVision and LLaVA-NeXT-Video"),
        (video_model_info(takes_images=False), ("video", "image"), "content[1]", "no images"),
        (video_model_info(max_videos=1), ("video", "What?", "video"), "content[2]", "at most 1 video in"),
        (video_model_info(max_videos=2), ("video", "video", "video"), "content[2]", "at most 2 videos in"),
    ],
)
def test_media_that_the_model_does_not_take_are_refused_by_their_path(
    model: ModelInfo, parts: tuple[str, ...], param: str, words: str
) -> None:
    with pytest.raises(InvalidRequest, match=words) as refused:
        prepared(model, *parts)
    assert refused.value.param == param
    assert param in refused.value.message


def test_aspect_ratio_of_images_is_refused_where_it_has_no_effect() -> None:
    with pytest.raises(InvalidRequest, match="takes only videos") as refused:
        prepared(video_model_info(takes_images=False), "video", aspect_ratio="pad")
    assert refused.value.param == "image_aspect_ratio"


def test_too_many_videos_are_refused_by_their_least_number_of_tokens() -> None:
    with pytest.raises(ContextLengthExceeded) as refused:
        prepared(MODEL, *["video"] * 41, "image")
    message = refused.value.message
    assert f"resulted in {41 * 101 + 576} tokens or more." in message
    assert "1 images take 576 tokens each, so at most 7 images fit. 41 videos take 101 tokens or more each." in message


def test_answer_that_does_not_fit_beside_one_frame_is_refused_with_a_lower_bound() -> None:
    with pytest.raises(ContextLengthExceeded, match=r"you requested \d+ tokens or more .* 101 of videos \(1 x 101\) and 4000 of answer"):
        prepared(MODEL, "video", "What?", max_tokens=4000)


def test_loaded_videos_are_counted_exactly() -> None:
    request = prepared(MODEL, "video", "image", "What?")
    assert request.tokens == len(request.token_ids) - 2 + 101 + 576
    image: Any = SimpleNamespace(tokens=576)
    counted = apply_media_tokens(request, PreparedMedia((image,), (video(8),)), 1024)
    assert counted.tokens == len(request.token_ids) - 2 + 801 + 576
    with pytest.raises(ContextLengthExceeded, match=r"576 of images \(1 x 576\), 3402 of videos \(3201 \+ 201\) and 500 of answer"):
        apply_media_tokens(
            dataclasses.replace(prepared(MODEL, "video", "video", "image", max_tokens=500)),
            PreparedMedia((image,), (video(32), video(2))),
            1024,
        )


def test_videos_travel_to_the_replicas_of_a_cluster() -> None:
    """Ray pickles the description of the model and the prompts."""
    assert pickle.loads(pickle.dumps(MODEL.video)) == MODEL.video
    prompt: Prompt = pickle.loads(pickle.dumps(Prompt([1], (), videos=(video(2),))))
    assert prompt.videos[0].frames.shape == (2, 1, 1, 3)
    assert prompt.videos[0].tokens == 201
