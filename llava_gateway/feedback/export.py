"""Exports votes as a dataset for LLaVA's trainer and SambaStudio's fine-tuning: `images/`, `annotations_train.json` and
`annotations_val.json`.

The log is read twice, line by line: first to find the last vote on each conversation, then to write the samples. Only a digest of each vote
is kept in memory.
"""

import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any

import orjson

from llava_gateway.errors import InvalidImage
from llava_gateway.feedback.record import Vote, VoteName
from llava_gateway.feedback.store import IMAGES, read
from llava_gateway.images.decode import open_image, shows_same, to_plain

TRAIN, VAL = "annotations_train.json", "annotations_val.json"
CONTENTS = {IMAGES, TRAIN, VAL}


class ExportError(Exception):
    """An error that the command reports in one line."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The selection of votes for the dataset."""

    votes: frozenset[VoteName] = frozenset({"up"})
    models: frozenset[str] = frozenset()
    """The models whose answers are exported; empty for all models."""
    val_fraction: float = 0.1
    """The fraction of samples for validation, 0 to 1."""
    seed: int = 0
    """Another seed selects other samples for validation."""
    several_pictures: bool = False
    """Whether conversations with several images are exported. Their `image` is a list."""

    def takes(self, vote: Vote) -> bool:
        """Return whether the vote is selected."""
        return vote.vote in self.votes and (not self.models or vote.model in self.models)

    def is_val(self, vote: Vote) -> bool:
        """Return whether the sample is for validation.

        Conversations that begin with the same image, or with the same text, are all for training or all for validation.
        """
        beginning = vote.image[0] if vote.image else vote.conversations[0].value
        return int.from_bytes(sha256(f"{self.seed} {beginning}".encode()).digest()[:8]) < self.val_fraction * (1 << 64)


@dataclass(slots=True)
class Tally:
    """The counts of an export."""

    train: int = 0
    val: int = 0
    images: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    """The number of selected votes that were not exported, by reason."""


def export(source: Path, target: Path, choice: Choice, *, overwrite: bool = False) -> Tally:
    """Export the votes of a feedback directory to `target`. The target appears complete or not at all.

    `overwrite`: replace an earlier export at `target`. Raises ExportError, and OSError if a file cannot be read or written.
    """
    target = target.resolve()
    replaces = _check_target(target, overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        stack.callback(shutil.rmtree, staging, ignore_errors=True)
        tally = _write(source, staging, choice)
        if not tally.train + tally.val:
            raise ExportError(f"{source} has nothing to export{_reasons(tally)}")
        if replaces:
            old = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
            stack.callback(shutil.rmtree, old, ignore_errors=True)
            target.rename(old)
        staging.rename(target)
    return tally


def summary(tally: Tally) -> str:
    """Return the counts in one line."""
    return f"conversations: {tally.train} to train, {tally.val} to validate; images: {tally.images}{_reasons(tally)}"


def _write(source: Path, target: Path, choice: Choice) -> Tally:
    tally = Tally()
    images = _ImageCopier(source / IMAGES, target / IMAGES)
    with _Annotations(target / TRAIN) as train, _Annotations(target / VAL) as val:
        for vote in _last_votes(source, tally):
            if choice.takes(vote) and (sample := _sample(vote, choice, images, tally)):
                (val if choice.is_val(vote) else train).add(sample)
        tally.train, tally.val = train.samples, val.samples
    tally.images = images.copied
    return tally


def _last_votes(source: Path, tally: Tally) -> Iterator[Vote]:
    """Yield the last vote of each key on each conversation of each model. Votes that are added during the export may be missing."""
    last: dict[bytes, int] = {}
    for number, vote in enumerate(read(source)):
        if vote:
            last[vote.subject] = number
        else:
            tally.left_out["broken lines"] += 1
    for number, vote in zip(count(), read(source), strict=False):
        if vote and last.get(vote.subject) == number:
            yield vote


def _sample(vote: Vote, choice: Choice, images: "_ImageCopier", tally: Tally) -> dict[str, Any] | None:
    """Return the sample in the format of LLaVA's documentation, or None if the trainer could not use it.

    `image` is the name of a file in `images/`, the trainer's --image_folder. A system prompt is added as `system`, which LLaVA's trainer
    ignores.
    """
    if len(vote.image) > 1 and not choice.several_pictures:
        tally.left_out["with several images"] += 1
        return None
    if not all(turn.value.strip() for turn in vote.conversations):
        tally.left_out["with an empty turn"] += 1
        return None
    names = [name for name in map(images.copy, vote.image) if name]
    if len(names) < len(vote.image):
        tally.left_out["with an image that is missing or cannot be read"] += 1
        return None
    image = {"image": names[0] if len(names) == 1 else names} if names else {}
    system = {"system": vote.system} if vote.system else {}
    return {"id": vote.id, **image, **system, "conversations": [turn.model_dump() for turn in vote.conversations]}


class _ImageCopier:
    """Copies images into the dataset, each once.

    A file that a trainer would not see as the model did is converted to PNG. These are images with an EXIF orientation, transparency, 16
    bits or damaged metadata, and formats other than JPEG and PNG.
    """

    def __init__(self, source: Path, target: Path) -> None:
        self._source, self._target = source, target
        self._names: dict[str, str | None] = {}
        target.mkdir()

    @property
    def copied(self) -> int:
        """The number of images in the dataset."""
        return sum(name is not None for name in self._names.values())

    def copy(self, name: str) -> str | None:
        """Copy the image. Return its name in the dataset, or None if the file is missing or cannot be read."""
        if name not in self._names:
            self._names[name] = self._copy(name)
        return self._names[name]

    def _copy(self, name: str) -> str | None:
        try:
            data = (self._source / name).read_bytes()
            plain = to_plain(open_image(data, sys.maxsize))
        except (FileNotFoundError, InvalidImage):
            return None
        if shows_same(data, plain):
            (self._target / name).write_bytes(data)
            return name
        name = f"{Path(name).stem}.png"
        plain.save(self._target / name)
        return name


class _Annotations:
    """A file with a JSON list, which is written element by element."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self.samples = 0

    def __enter__(self) -> "_Annotations":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.write(b"\n]\n" if self.samples else b"[]\n")
        self._file.close()

    def add(self, sample: dict[str, Any]) -> None:
        self._file.write((b",\n" if self.samples else b"[\n") + orjson.dumps(sample))
        self.samples += 1


def _check_target(target: Path, overwrite: bool) -> bool:
    """Return whether `target` is an earlier export that must be replaced. Raise ExportError if it is anything else, unless it is empty."""
    if not target.exists():
        return False
    found = {entry.name for entry in target.iterdir()} if target.is_dir() else {""}
    if found and not found <= CONTENTS:
        raise ExportError(f"{target} exists already and is not an export")
    if found and not overwrite:
        raise ExportError(f"{target} exists already; --overwrite replaces it")
    return bool(found)


def _reasons(tally: Tally) -> str:
    return "".join(f"; left out: {number} {reason}" for reason, number in tally.left_out.most_common())
