"""Runs of `llava-gateway`, and short ways to store votes and to read an exported dataset."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from blake3 import blake3
from PIL import Image

from llava_gateway.feedback.record import Vote, VoteName, new_vote
from llava_gateway.feedback.store import Store
from llava_gateway.images.decode import extension
from llava_gateway.types import ImageUrl, Message, Text


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `llava-gateway` with these arguments, and wait for its end."""
    command = [sys.executable, "-m", "llava_gateway", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def vote_on(
    text: str = "Hello",
    answer: str = "Hello!",
    vote: VoteName = "up",
    *,
    model: str = "m",
    key: str | None = None,
    images: tuple[str, ...] = (),
) -> Vote:
    shown = tuple(ImageUrl("x", "x") for _ in images)
    return new_vote(model, vote, key, [Message("user", (*shown, Text(text))), Message("assistant", (Text(answer),))], images)


def keep(store: Store, *images: bytes, **fields: Any) -> Vote:
    """Store a vote on an answer about these images."""
    files = {f"{blake3(image).hexdigest()}.{extension(image)}": image for image in images}
    vote = vote_on(images=tuple(files), **fields)
    store.add(vote, files)
    return vote


def samples(dataset: Path) -> list[dict[str, Any]]:
    """Return all annotations of a dataset, after a check that LLaVA's `LazySupervisedDataset` can use them.

    LLaVA joins --image_folder and `image` to a path, needs the turns of human and gpt in alternation, and puts an image in the place of
    `<image>`. The folder is `images`.
    """
    sides = [json.loads((dataset / f"annotations_{side}.json").read_text()) for side in ("train", "val")]
    found: list[dict[str, Any]] = [sample for side in sides for sample in side]
    assert len({sample["id"] for sample in found}) == len(found)
    for sample in found:
        turns = sample["conversations"]
        assert [turn["from"] for turn in turns] == ["human", "gpt"] * (len(turns) // 2)
        assert all(turn["value"].strip() for turn in turns)
        shown = [sample["image"]] if isinstance(sample.get("image"), str) else sample.get("image", [])
        placeholders = 0
        for turn in turns:
            text = turn["value"]
            while text.startswith("<image>\n"):
                text = text.removeprefix("<image>\n")
                placeholders += turn["from"] == "human"
            assert "<image>" not in text
        assert placeholders == len(shown)
        for path in shown:
            with Image.open(os.path.join(dataset / "images", path)) as opened:  # noqa: PTH118 # as the trainer does
                opened.convert("RGB").load()
    return found
