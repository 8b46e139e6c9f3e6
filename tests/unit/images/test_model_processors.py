"""Prepared images have the pixels and the tile grid of the model's own processor."""

from pathlib import Path

import numpy as np
import pytest
from helpers.tiny_models import NEXT_GRIDS, ONEVISION_GRIDS, TINY
from PIL import Image
from transformers import AutoProcessor

from llava_gateway.demo.images import encode
from llava_gateway.images.decode import Transform, open_image, prepare
from llava_gateway.images.geometry import best_grid, shrunk
from llava_gateway.model_info import VisionConfig

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", TINY)
def test_pixels_equal_those_of_the_models_processor(name: str, tmp_path: Path) -> None:
    """The processor gets the original image on one side, and the image that the gateway prepares on the other."""
    TINY[name](tmp_path / name)
    processor = AutoProcessor.from_pretrained(tmp_path / name).image_processor
    transform = Transform(vision(name), "crop" if name == "bakllava" else "resize")
    for size in ((30, 20), (640, 480), (1021, 677), (2500, 900)):
        image = smooth(size)
        data = encode(image)
        prepared = prepare(open_image(data, 10_000_000), data, transform)
        prepared_pixels, original_pixels = (np.asarray(processor(each, return_tensors="np")["pixel_values"]) for each in (prepared, image))
        assert prepared_pixels.shape == original_pixels.shape
        assert np.abs(prepared_pixels - original_pixels).mean() < 0.01  # black and white differ by 2 or more
        assert np.quantile(np.abs(prepared_pixels - original_pixels), 0.999) < 0.1


def smooth(size: tuple[int, int]) -> Image.Image:
    """Return an image in which each part differs from all others."""
    across, down = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    return Image.fromarray(np.stack([across, down, 255 - (across + down) / 2], -1).astype(np.uint8))


def vision(name: str) -> VisionConfig:
    """Return the description that the engine gives of a model. The tokens of an image are the patches that it covers on its grid."""
    pinpoints = {"next": NEXT_GRIDS, "onevision": ONEVISION_GRIDS}.get(name, [])
    grids = tuple((width, height) for height, width in pinpoints)
    return VisionConfig(384 if name in ("siglip", "onevision") else 336, lambda w, h: covered((w, h), grids), 576, 2928, grids)


def covered(size: tuple[int, int], grids: tuple[tuple[int, int], ...]) -> int:
    grid = best_grid(size, grids)
    scale = min(grid[0] / size[0], grid[1] / size[1])
    return int(round(size[0] * scale / 14, 7)) * int(round(size[1] * scale / 14, 7))


@pytest.mark.parametrize("pinpoints", [NEXT_GRIDS, ONEVISION_GRIDS], ids=["next", "onevision"])
def test_shrinking_keeps_the_grid_and_the_tokens(pinpoints: list[list[int]]) -> None:
    from transformers.image_processing_utils import select_best_resolution

    grids = tuple((width, height) for height, width in pinpoints)
    largest = max(map(max, grids))
    random = np.random.default_rng(0)
    for width, height in (10 ** random.uniform(1.3, 3.9, (3000, 2))).astype(int).tolist():
        small = shrunk((width, height), grids, lambda w, h: covered((w, h), grids))
        assert best_grid(small, grids) == best_grid((width, height), grids) == select_best_resolution((height, width), pinpoints)[::-1]
        assert covered(small, grids) == covered((width, height), grids)
        assert max(small) <= largest
        assert small == (width, height) or max(width / small[0], height / small[1]) > 1
