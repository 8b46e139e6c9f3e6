"""What the demo model trains on: lessons as batches of token ids and image patches, drawn anew for ever."""

import io
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import IterableDataset

from llava_gateway.demo import tokenizer as special_tokens
from llava_gateway.demo.conversations import Lesson, Mix, lesson
from llava_gateway.demo.images import COLORS, PAD_COLOR, draw_noisy, encode

SIDE, PATCH = 336, 14
GRID = SIDE // PATCH
PATCHES = GRID * GRID
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)  # CLIP's normalisation, as in its preprocessor_config.json
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
IGNORE = -100
DESCRIBED, ASKED = 3.0, 6.0  # how much a colour's name counts, in a description and as an answer of its own; other words count 0.5


@dataclass(frozen=True)
class Stage:
    steps: int
    tokens: int
    """About how many positions a batch has."""
    patches: tuple[int, ...]
    """How many of an image's 576 patches a batch sees: one of these."""
    rate: float
    mix: Mix


COUNTS, SHARES = (0, 1, 2, 3, 4), (5, 50, 33, 6, 6)  # how often a batch is about so many images
ROOM = 300  # positions for the questions of a lesson


@dataclass
class Batch:
    """B lessons of L positions: text tokens, image patches in between, padding at the end."""

    ids: Tensor  # (B, L) token ids; image positions hold the image token
    positions: Tensor  # (B, L) rotary positions as they are with all patches present
    segments: Tensor  # (B, L) 0 the shared beginning, 1.. a question, -1 padding
    labels: Tensor  # (B, L) the next token, or IGNORE
    weights: Tensor  # (B, L) how much each label counts
    patches: Tensor  # (images, kept, 588) normalised pixels, channel first
    kept: Tensor  # (images, kept) their places in the 24x24 grid


class Lessons(IterableDataset[Batch]):  # type: ignore[misc]
    """An endless, seeded stream of batches."""

    def __init__(self, tokenizer: Tokenizer, stage: Stage, seed: int) -> None:
        self.tokenizer, self.stage, self.seed = tokenizer, stage, seed
        self.image_id = tokenizer.token_to_id(special_tokens.IMAGE)
        self.weights = {tokenizer.encode(f" {name}", add_special_tokens=False).ids[0]: DESCRIBED for name in COLORS}
        self.weights |= {tokenizer.encode(f" {name.capitalize()}", add_special_tokens=False).ids[0]: ASKED for name in COLORS}

    def __iter__(self) -> Iterator[Batch]:
        rng = random.Random(self.seed)
        while True:
            count = rng.choices(COUNTS, SHARES)[0]
            patches = rng.choice(self.stage.patches)
            lessons = max(1, self.stage.tokens // (count * patches + ROOM))
            yield self._batch([lesson(rng, count, 30, self.stage.mix) for _ in range(lessons)], patches, rng)

    def _batch(self, lessons: list[Lesson], seen: int, rng: random.Random) -> Batch:
        rows, patches, kept = [], [], []
        for one in lessons:
            places = [np.sort(_sample(seen, rng)) for _ in one.grids]
            pixels = [to_patches(fit(draw_noisy(grid, rng), rng))[place] for grid, place in zip(one.grids, places, strict=True)]
            kept += places
            patches += pixels
            rows.append(self._row(one, places))
        length = max(len(row[0]) for row in rows)
        fill = (0, 0, -1, IGNORE, 0.0)
        columns = [[row[field] + [fill[field]] * (length - len(row[field])) for row in rows] for field in range(5)]
        ids, positions, segments, labels, weights = (torch.tensor(column) for column in columns)
        return Batch(
            ids, positions, segments, labels, weights,
            torch.from_numpy(np.array(patches)), torch.from_numpy(np.array(kept)),
        )  # fmt: skip

    def _row(self, one: Lesson, places: list[np.ndarray]) -> tuple[list[int], list[int], list[int], list[int], list[float]]:
        ids: list[int] = []
        positions: list[int] = []
        segments: list[int] = []
        labels: list[int] = []
        weights: list[float] = []
        images = iter(places)

        def add(pieces: tuple[tuple[str, bool], ...], segment: int, position: int) -> int:
            first = True
            for text, spoken in pieces:
                tokens = self.tokenizer.encode(text, add_special_tokens=segment == 0 and first).ids
                first = False
                for token in tokens:
                    if spoken:  # the position before this token has to predict it
                        labels[-1] = token
                        weights[-1] = self.weights.get(token, 0.5)
                    here = next(images).tolist() if token == self.image_id else [0]
                    span = PATCHES if token == self.image_id else 1
                    ids.extend([token] * len(here))
                    positions.extend(position + place for place in here)
                    segments.extend([segment] * len(here))
                    labels.extend([IGNORE] * len(here))
                    weights.extend([0.0] * len(here))
                    position += span
            return position

        start = add(one.beginning, 0, 0)
        end = len(ids) + ROOM
        for number, question in enumerate(one.questions, 1):
            add(question, number, start)
            if len(ids) >= end:
                break
        return ids[:end], positions[:end], segments[:end], labels[:end], weights[:end]


def _sample(count: int, rng: random.Random) -> np.ndarray:
    return np.array(rng.sample(range(PATCHES), count))


def fit(picture: Image.Image, rng: random.Random) -> Image.Image:
    """To 336x336, mostly as LLaVA-1.5's processor does (shortest edge, centre crop), sometimes padded or squashed; through a file."""
    if rng.random() < 0.4:
        picture = Image.open(io.BytesIO(encode(picture, "JPEG", quality=rng.randint(40, 95))))
    kind = rng.random()
    width, height = picture.size
    if kind < 0.15:
        side = max(width, height)
        square = Image.new("RGB", (side, side), PAD_COLOR)
        square.paste(picture, ((side - width) // 2, (side - height) // 2))
        picture = square
    elif kind > 0.3:
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        picture = picture.crop((left, top, left + side, top + side))
    return picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def to_patches(picture: Image.Image) -> np.ndarray:
    """(576, 588): CLIP's normalised patches, each channel first."""
    pixels = (np.asarray(picture, np.float32) / 255 - MEAN) / STD
    return pixels.reshape(GRID, PATCH, GRID, PATCH, 3).transpose(0, 2, 4, 1, 3).reshape(PATCHES, 3 * PATCH * PATCH)
