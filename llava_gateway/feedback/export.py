"""A dataset of votes, as LLaVA's trainer and SambaStudio's fine-tuning take it: `images/`, `annotations_train.json` and
`annotations_val.json`.

The log is read twice, line by line: first for which vote is the last on its conversation, then for the samples. What has to be remembered
of a vote is a digest.
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
from llava_gateway.images.decode import is_plain, open_image, plain

TRAIN, VAL = "annotations_train.json", "annotations_val.json"
CONTENTS = {IMAGES, TRAIN, VAL}


class ExportError(Exception):
    """One line for whoever asked for the export."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What is to be in the dataset."""

    votes: frozenset[VoteName] = frozenset({"up"})
    models: frozenset[str] = frozenset()
    """Empty: all."""
    val_fraction: float = 0.1
    """0 to 1."""
    seed: int = 0
    """Another one divides the samples in another way."""
    several_pictures: bool = False
    """Whether conversations about several pictures are taken, with a list of them as `image`."""

    def takes(self, vote: Vote) -> bool:
        return vote.vote in self.votes and (not self.models or vote.model in self.models)

    def is_val(self, vote: Vote) -> bool:
        """The same for conversations that begin with the same picture, or in the same words: none is trained on and validated with."""
        beginning = vote.image[0] if vote.image else vote.conversations[0].value
        return int.from_bytes(sha256(f"{self.seed} {beginning}".encode()).digest()[:8]) < self.val_fraction * (1 << 64)


@dataclass(slots=True)
class Tally:
    train: int = 0
    val: int = 0
    pictures: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    """How many of what the choice would have taken, by reason."""


def export(source: Path, target: Path, choice: Choice, *, overwrite: bool = False) -> Tally:
    """From a feedback directory to `target`, which is there whole or not at all; `overwrite`: an earlier export may be. Raises
    ExportError, and OSError if something cannot be read or written."""
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
    """One line."""
    return f"conversations: {tally.train} to train, {tally.val} to validate; pictures: {tally.pictures}{_reasons(tally)}"


def _write(source: Path, target: Path, choice: Choice) -> Tally:
    tally = Tally()
    pictures = _Pictures(source / IMAGES, target / IMAGES)
    with _Annotations(target / TRAIN) as train, _Annotations(target / VAL) as val:
        for vote in _last_votes(source, tally):
            if choice.takes(vote) and (sample := _sample(vote, choice, pictures, tally)):
                (val if choice.is_val(vote) else train).add(sample)
        tally.train, tally.val = train.samples, val.samples
    tally.pictures = pictures.taken
    return tally


def _last_votes(source: Path, tally: Tally) -> Iterator[Vote]:
    """Of each key, model and conversation the last one. Votes that come meanwhile are not seen."""
    last: dict[bytes, int] = {}
    for number, vote in enumerate(read(source)):
        if vote:
            last[vote.subject] = number
        else:
            tally.left_out["broken lines"] += 1
    for number, vote in zip(count(), read(source), strict=False):
        if vote and last.get(vote.subject) == number:
            yield vote


def _sample(vote: Vote, choice: Choice, pictures: "_Pictures", tally: Tally) -> dict[str, Any] | None:
    """As LLaVA's documentation has it; `system`, which its trainer does not look at, is there if something was said."""
    if len(vote.image) > 1 and not choice.several_pictures:
        tally.left_out["with several pictures"] += 1
        return None
    if not all(turn.value.strip() for turn in vote.conversations):
        tally.left_out["with an empty turn"] += 1
        return None
    paths = [f"{IMAGES}/{name}" for name in map(pictures.take, vote.image) if name]
    if len(paths) < len(vote.image):
        tally.left_out["with a picture that is gone or cannot be read"] += 1
        return None
    image = {"image": paths[0] if len(paths) == 1 else paths} if paths else {}
    system = {"system": vote.system} if vote.system else {}
    return {"id": vote.id, **image, **system, "conversations": [turn.model_dump() for turn in vote.conversations]}


class _Pictures:
    """Pictures on their way into the dataset, each once: as it came, or, where a trainer would see something else in it than the model did
    (turned by EXIF, transparent, 16 bits, neither JPEG nor PNG), as a PNG of that."""

    def __init__(self, source: Path, target: Path) -> None:
        self._source, self._target = source, target
        self._names: dict[str, str | None] = {}
        target.mkdir()

    @property
    def taken(self) -> int:
        return sum(name is not None for name in self._names.values())

    def take(self, name: str) -> str | None:
        """The picture's name in the dataset; None if it is gone or cannot be read."""
        if name not in self._names:
            self._names[name] = self._take(name)
        return self._names[name]

    def _take(self, name: str) -> str | None:
        try:
            data = (self._source / name).read_bytes()
            image = open_image(data, sys.maxsize)
            converted = None if is_plain(image) else plain(image)
        except (FileNotFoundError, InvalidImage):
            return None
        if converted is None:
            (self._target / name).write_bytes(data)
            return name
        name = f"{Path(name).stem}.png"
        converted.save(self._target / name)
        return name


class _Annotations:
    """A JSON list, written as it comes."""

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
    """Whether there is an export that is to be replaced. Raises ExportError if anything else is there."""
    if not target.exists():
        return False
    found = {entry.name for entry in target.iterdir()} if target.is_dir() else {""}
    if found and not found <= CONTENTS:
        raise ExportError(f"{target} is there already, and is no export")
    if found and not overwrite:
        raise ExportError(f"{target} is there already; --overwrite replaces it")
    return bool(found)


def _reasons(tally: Tally) -> str:
    return "".join(f"; left out: {number} {reason}" for reason, number in tally.left_out.most_common())
