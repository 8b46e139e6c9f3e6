"""The demo model's training data: an endless series of random lessons, as batches of token ids and image patches."""

import io
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import IterableDataset

from llava_gateway.demo import tokenizer as special_tokens
from llava_gateway.demo.conversations import PREDICATE_END, Lesson, Mix, colors_of, lesson
from llava_gateway.demo.images import COLORS, PAD_COLOR, draw_noisy, encode

SIDE, PATCH = 336, 14
GRID = SIDE // PATCH
PATCHES = GRID * GRID
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)  # CLIP's normalisation, as in its preprocessor_config.json
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
IGNORE = -100
DESCRIPTION_WEIGHT, ANSWER_WEIGHT, JUDGEMENT_WEIGHT, OTHER_WEIGHT = 3.0, 6.0, 8.0, 0.5
"""Weights of the loss: for a colour in a description, for a colour as a whole answer, for yes and no, and for other words."""


@dataclass(frozen=True)
class Stage:
    """A part of the training with its own schedule."""

    steps: int
    tokens: int
    """The approximate number of positions in a batch."""
    patches: tuple[int, ...]
    """The number of an image's 576 patches that a batch sees is drawn from these."""
    rate: float
    """The greatest learning rate."""
    mix: Mix


IMAGE_COUNTS, COUNT_WEIGHTS = (0, 1, 2, 3, 4), (5, 50, 33, 6, 6)
"""Numbers of images in a batch's lessons, and the relative frequency of each number."""
QUESTION_POSITIONS = 300
"""Positions for the questions of a lesson."""


@dataclass
class Batch:
    """B lessons of L positions: text tokens, image patches in between, padding at the end."""

    ids: Tensor  # (B, L) token ids; image positions hold the image token
    positions: Tensor  # (B, L) rotary positions, the same as if all patches were present
    segments: Tensor  # (B, L) 0: the shared beginning, 1 and more: a question, -1: padding
    labels: Tensor  # (B, L) the next token, or IGNORE
    weights: Tensor  # (B, L) the weight of each label in the loss
    named: Tensor  # (B, L) at judgements, the colour that the statement names, as a position in COLORS; elsewhere IGNORE
    right: Tensor  # (B, L) at judgements, the colour of the statement's quarter; elsewhere IGNORE
    patches: Tensor  # (images, kept, 588) normalised pixels, channel first
    kept: Tensor  # (images, kept) the patches' indices in the 24x24 grid


class Lessons(IterableDataset[Batch]):  # type: ignore[misc]
    """An endless, seeded stream of batches."""

    def __init__(self, tokenizer: Tokenizer, stage: Stage, seed: int) -> None:
        self.tokenizer, self.stage, self.seed = tokenizer, stage, seed
        self.image_id = tokenizer.token_to_id(special_tokens.IMAGE)
        self.weights = {tokenizer.encode(f" {name}", add_special_tokens=False).ids[0]: DESCRIPTION_WEIGHT for name in COLORS}
        self.weights |= {tokenizer.encode(f" {name.capitalize()}", add_special_tokens=False).ids[0]: ANSWER_WEIGHT for name in COLORS}
        self.judgements = {tokenizer.encode(f" {word}", add_special_tokens=False).ids[0] for word in ("yes", "no")}

    def __iter__(self) -> Iterator[Batch]:
        rng = random.Random(self.seed)
        while True:
            count = rng.choices(IMAGE_COUNTS, COUNT_WEIGHTS)[0]
            patches = rng.choice(self.stage.patches)
            lessons = max(1, self.stage.tokens // (count * patches + QUESTION_POSITIONS))
            yield self._batch([lesson(rng, count, 30, self.stage.mix) for _ in range(lessons)], patches, rng)

    def _batch(self, lessons: list[Lesson], patches_kept: int, rng: random.Random) -> Batch:
        """Return a batch in which each image has `patches_kept` random patches."""
        rows, patches, kept = [], [], []
        for each in lessons:
            indices = [np.sort(_sample(patches_kept, rng)) for _ in each.grids]
            pixels = [to_patches(fit(draw_noisy(grid, rng), rng))[index] for grid, index in zip(each.grids, indices, strict=True)]
            kept += indices
            patches += pixels
            rows.append(self._row(each, indices))
        length = max(len(row[0]) for row in rows)
        fill = (0, 0, -1, IGNORE, 0.0, IGNORE, IGNORE)
        columns = [[row[field] + [fill[field]] * (length - len(row[field])) for row in rows] for field in range(len(fill))]
        ids, positions, segments, labels, weights, named, right = (torch.tensor(column) for column in columns)
        return Batch(
            ids, positions, segments, labels, weights, named, right,
            torch.from_numpy(np.array(patches)), torch.from_numpy(np.array(kept)),
        )  # fmt: skip

    def _row(self, each: Lesson, indices: list[np.ndarray]) -> tuple[list[Any], ...]:
        """Return the first seven fields of a batch for one lesson. `indices`: the kept patches of each image."""
        ids: list[int] = []
        positions: list[int] = []
        segments: list[int] = []
        labels: list[int] = []
        weights: list[float] = []
        named: list[int] = []
        right: list[int] = []
        images = iter(indices)

        def add(pieces: tuple[tuple[str, bool], ...], segment: int, position: int) -> int:
            """Append pieces of text from `position` on, and return the next position."""
            first, question = True, ""
            for text, is_answer in pieces:
                question = question if is_answer else text
                tokens = self.tokenizer.encode(text, add_special_tokens=segment == 0 and first).ids
                first = False
                for token in tokens:
                    if is_answer:  # the previous position has to predict this token
                        labels[-1] = token
                        weights[-1] = self.weights.get(token, OTHER_WEIGHT)
                        if token in self.judgements and PREDICATE_END in question:
                            weights[-1] = JUDGEMENT_WEIGHT
                            named[-1], right[-1] = colors_of(question, each.grids[0])
                    offsets = next(images).tolist() if token == self.image_id else [0]
                    span = PATCHES if token == self.image_id else 1
                    ids.extend([token] * len(offsets))
                    positions.extend(position + offset for offset in offsets)
                    segments.extend([segment] * len(offsets))
                    labels.extend([IGNORE] * len(offsets))
                    weights.extend([0.0] * len(offsets))
                    named.extend([IGNORE] * len(offsets))
                    right.extend([IGNORE] * len(offsets))
                    position += span
            return position

        start = add(each.beginning, 0, 0)
        end = len(ids) + QUESTION_POSITIONS
        for number, question in enumerate(each.questions, 1):
            add(question, number, start)
            if len(ids) >= end:
                break
        return tuple(values[:end] for values in (ids, positions, segments, labels, weights, named, right))


def _sample(count: int, rng: random.Random) -> np.ndarray:
    return np.array(rng.sample(range(PATCHES), count))


def fit(image: Image.Image, rng: random.Random) -> Image.Image:
    """Return the image in 336x336 pixels.

    Most images are resized and cropped like in LLaVA-1.5's processor (shortest edge, centre crop); some are padded, some squashed. Some
    are first compressed as JPEG.
    """
    if rng.random() < 0.4:
        image = Image.open(io.BytesIO(encode(image, "JPEG", quality=rng.randint(40, 95))))
    kind = rng.random()
    width, height = image.size
    if kind < 0.15:
        side = max(width, height)
        square = Image.new("RGB", (side, side), PAD_COLOR)
        square.paste(image, ((side - width) // 2, (side - height) // 2))
        image = square
    elif kind > 0.3:
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    return image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def to_patches(image: Image.Image) -> np.ndarray:
    """Return CLIP's normalised patches, of shape (576, 588). In each patch, the channel is the first dimension."""
    pixels = (np.asarray(image, np.float32) / 255 - MEAN) / STD
    return pixels.reshape(GRID, PATCH, GRID, PATCH, 3).transpose(0, 2, 4, 1, 3).reshape(PATCHES, 3 * PATCH * PATCH)
