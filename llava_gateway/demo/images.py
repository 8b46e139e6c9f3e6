"""The images that the demo model knows: 2x2 grids of eight colours, and the correct descriptions of them.

They are used to train and to measure the demo model. The tests use them, too: a fault in the image path shows as a wrong answer.
"""

import base64
import io
import random
from collections.abc import Sequence

import numpy as np
from PIL import Image

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 25, 25),
    "green": (20, 150, 40),
    "blue": (25, 50, 220),
    "yellow": (245, 225, 30),
    "purple": (135, 20, 150),
    "orange": (250, 140, 15),
    "black": (10, 10, 10),
    "white": (245, 245, 245),
}
PURE: dict[str, tuple[tuple[int, int, int], ...]] = {  # RGB values that programmers use for the name of a colour
    "red": ((255, 0, 0), (200, 0, 0)),
    "green": ((0, 255, 0), (0, 128, 0), (0, 200, 0)),
    "blue": ((0, 0, 255), (0, 0, 200)),
    "yellow": ((255, 255, 0),),
    "purple": ((128, 0, 128), (160, 32, 240)),
    "orange": ((255, 165, 0), (255, 128, 0)),
    "black": ((0, 0, 0),),
    "white": ((255, 255, 255),),
}
PLACES = ("top left", "top right", "bottom left", "bottom right")
"""The names of the grid's quarters."""
PAD_COLOR = (122, 116, 104)
"""CLIP's mean colour, with which LLaVA pads images to a square."""

Grid = tuple[str, str, str, str]
"""Colour names in the order of PLACES."""


def random_grid(rng: random.Random) -> Grid:
    """Return a grid of random colours."""
    first, second, third, fourth = (rng.choice(list(COLORS)) for _ in PLACES)
    return first, second, third, fourth


def draw(grid: Grid, size: tuple[int, int] = (336, 336)) -> Image.Image:
    """Return the grid as a clean RGB image. `size`: width and height in pixels."""
    return _paint([COLORS[name] for name in grid], size, split=(0.5, 0.5))


def draw_noisy(grid: Grid, rng: random.Random) -> Image.Image:
    """Return the grid like a photo or a scan: any size and shape, inexact colours, a shifted centre, darker or brighter, noisy."""
    short = rng.choice((48, 120, 224, 336, 400))
    long = int(short * rng.choice((1.0, 1.0, 1.33, 1.78, 2.2)))
    size = (long, short) if rng.random() < 0.5 else (short, long)
    colors = [_shift(COLORS[name] if rng.random() < 0.7 else rng.choice(PURE[name]), rng) for name in grid]
    pixels = np.asarray(_paint(colors, size, split=(rng.uniform(0.46, 0.54), rng.uniform(0.46, 0.54))), np.float32)
    pixels = pixels * np.float32(rng.uniform(0.75, 1.1))
    if strength := rng.choice((0, 6, 14)):
        pixels += np.random.default_rng(rng.getrandbits(32)).standard_normal(pixels.shape, np.float32) * np.float32(strength)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def encode(image: Image.Image, image_format: str = "PNG", quality: int = 85) -> bytes:
    """Return the image as the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, image_format, quality=quality)
    return buffer.getvalue()


def data_uri(data: bytes) -> str:
    """Return the bytes of an image file as a data URI, for an `image_url`."""
    return "data:image/png;base64," + base64.b64encode(data).decode()


def describe(grids: Sequence[Grid]) -> str:
    """Return the correct answer to `Describe this image.`, or to `Describe these images.` for several grids."""
    sentences = [
        "the top left is {}, the top right is {}, the bottom left is {} and the bottom right is {}.".format(*grid) for grid in grids
    ]
    if len(sentences) == 1:
        return sentences[0].replace("the", "The", 1)
    return " ".join(f"Image {number}: {sentence}" for number, sentence in enumerate(sentences, 1))


def _paint(colors: Sequence[tuple[int, int, int]], size: tuple[int, int], split: tuple[float, float]) -> Image.Image:
    width, height = size
    column, row = round(width * split[0]), round(height * split[1])
    image = Image.new("RGB", size)
    boxes = ((0, 0, column, row), (column, 0, width, row), (0, row, column, height), (column, row, width, height))
    for color, box in zip(colors, boxes, strict=True):
        image.paste(color, box)
    return image


def _shift(color: tuple[int, int, int], rng: random.Random) -> tuple[int, int, int]:
    red, green, blue = (max(0, min(255, channel + rng.randint(-18, 18))) for channel in color)
    return red, green, blue
