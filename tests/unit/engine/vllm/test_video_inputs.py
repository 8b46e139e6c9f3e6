"""The frames of a video that reach the engine equal those of Hugging Face's processor, which gets the whole frames."""

import asyncio
import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tiny_models import next_video, onevision
from helpers.videos import all_frames, video
from PIL import Image
from transformers import AutoProcessor
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.renderers import renderer_from_config

from llava_gateway.engine.vllm.compat.requests import process_media
from llava_gateway.images.geometry import VideoTokens
from llava_gateway.images.loader import ImageLoader
from llava_gateway.model_info import VideoConfig
from llava_gateway.settings import Settings
from llava_gateway.types import PreparedImage, PreparedVideo, VideoUrl
from llava_gateway.videos.loader import VideoLoader

pytestmark = pytest.mark.slow

VIDEO, IMAGE = 640, 3
"""The token ids of the tiny models."""
FORMS = {
    "onevision": (onevision, VideoConfig(384, "resize", VideoTokens(196, 1), 4)),
    "next_video": (next_video, VideoConfig(336, "crop", VideoTokens(144, 0), 4)),
}
FILE = video(9, size=(500, 380))


async def load(config: VideoConfig) -> PreparedVideo:
    images = ImageLoader(Settings(model="m"))
    videos = VideoLoader(Settings(model="m"), images)
    try:
        source = VideoUrl("data:video/mp4;base64," + base64.b64encode(FILE).decode(), "video")
        return (await videos.load((source,), config))[0]
    finally:
        await videos.close()
        await images.close()


@pytest.mark.parametrize("name", FORMS)
def test_pixels_at_the_engine_equal_those_of_the_models_processor(name: str, tmp_path: Path) -> None:
    make, form = FORMS[name]
    checkpoint = tmp_path / name
    make(checkpoint)
    engine_config = AsyncEngineArgs(str(checkpoint), enforce_eager=True, dtype="float32").create_engine_config()
    renderer = renderer_from_config(engine_config)
    images = [PreparedImage(Image.new("RGB", (384, 384)), "image", (384, 384), 1485)] if name == "onevision" else []

    async def render() -> Any:
        loaded = await load(form)
        prompt = [1, *(IMAGE for _ in images), 7, VIDEO, 9]
        return loaded, await process_media(renderer, prompt, images, videos=[loaded])

    try:
        loaded, rendered = asyncio.run(render())
    finally:
        renderer.shutdown()
    (place,) = rendered["mm_placeholders"]["video"]
    assert (place.length, rendered["mm_hashes"]["video"]) == (loaded.tokens, [loaded.digest]) == (form.tokens(4), [loaded.digest])
    assert rendered["prompt_token_ids"][place.offset - 1 : place.offset + 1] == [7, VIDEO]
    frames = np.stack([all_frames(FILE)[index] for index in (0, 2, 4, 6)])
    expected = AutoProcessor.from_pretrained(checkpoint)(text="<video>", videos=[frames], return_tensors="pt")["pixel_values_videos"][0]
    pixels = rendered["mm_kwargs"]["video"][0]["pixel_values_videos"].data
    assert pixels.shape == expected.shape
    difference = (pixels - expected).abs()
    assert difference.mean() < 0.5 / 255 / 0.26  # 0.26 is the least standard deviation by which a processor divides
    assert difference.max() < 4 / 255 / 0.26
