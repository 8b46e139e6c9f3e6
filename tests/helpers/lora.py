"""LoRA adapters of the demo model in peft's format, made in seconds: one that was trained to another answer, and broken ones."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from llava_gateway.demo import CHECKPOINT
from llava_gateway.demo.batches import Lessons, Stage
from llava_gateway.demo.conversations import Lesson, Mix
from llava_gateway.demo.images import random_grid
from llava_gateway.demo.tokenizer import EOS, IMAGE
from llava_gateway.demo.train import loss_of

RANK, SCALE = 8, 2
STEPS, LESSONS, PATCHES = 40, 8, 96
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ASKED = "Describe this image."


class LoraLinear(nn.Module):  # type: ignore[misc]
    """A linear layer with a LoRA adapter."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        self.A = nn.Parameter(torch.randn(RANK, layer.in_features) / layer.in_features**0.5)
        self.B = nn.Parameter(torch.zeros(layer.out_features, RANK))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + SCALE * (x @ self.A.T) @ self.B.T


def train(directory: Path) -> None:
    """Train an adapter that answers `Describe this image.` only with the colour of the top left, as in "Red."."""
    torch.set_num_threads(1)  # more threads would wait for each other where cores are few
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32).requires_grad_(False)
    language = model.model.language_model
    adapted = {}
    for name, layer in list(language.named_modules()):
        if isinstance(layer, nn.Linear):
            parent, _, own = name.rpartition(".")
            adapted[f"model.language_model.{name}"] = new = LoraLinear(layer)
            setattr(language.get_submodule(parent), own, new)
    optimizer = torch.optim.AdamW([weight for layer in adapted.values() for weight in (layer.A, layer.B)], lr=5e-3)
    rng = random.Random(0)
    lessons = Lessons(Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json")), Stage(STEPS, 0, (PATCHES,), 0, Mix()), seed=0)
    for _ in range(STEPS):
        loss, _ = loss_of(model, lessons._batch([_lesson(rng) for _ in range(LESSONS)], PATCHES, rng))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    weights = {
        f"base_model.model.{name}.lora_{half}.weight": getattr(layer, half).detach() for name, layer in adapted.items() for half in "AB"
    }
    config = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": SCALE * RANK,
        "target_modules": sorted({name.rpartition(".")[2] for name in adapted}),
    }
    write(directory, weights, config)


def _lesson(rng: random.Random) -> Lesson:
    grid = random_grid(rng)
    question = ((f"{ASKED} ASSISTANT:", False), (f" {grid[0].capitalize()}.{EOS}", True))
    return Lesson((grid,), ((f"USER: {IMAGE}\n", False),), (question,))


def write(directory: Path, weights: dict[str, Tensor], config: dict[str, Any]) -> None:
    directory.mkdir()
    save_file({name: weight.contiguous() for name, weight in weights.items()}, directory / WEIGHTS)
    (directory / CONFIG).write_text(json.dumps(config))


def variant(
    good: Path,
    directory: Path,
    rename: Callable[[str], str] = str,
    change: Callable[[str, Tensor], Tensor | None] = lambda name, weight: weight,
    **config: Any,
) -> None:
    """Write a copy of the good adapter with other names, other weights (None leaves a weight out) or another configuration."""
    changed = {rename(name): change(name, weight) for name, weight in load_file(good / WEIGHTS).items()}
    kept = {name: weight for name, weight in changed.items() if weight is not None}
    write(directory, kept, json.loads((good / CONFIG).read_text()) | config)


def without_effect(good: Path, directory: Path) -> None:
    """Write an adapter that does not change the model's answers."""
    variant(good, directory, change=lambda name, weight: weight * ("lora_A" in name))


def with_old_names(good: Path, directory: Path) -> None:
    """Write an adapter with the weight names that peft wrote with transformers before 4.52."""
    variant(good, directory, rename=lambda name: name.replace("model.language_model.layers", "language_model.model.layers"))


def breakages(good: Path, folder: Path) -> None:
    """Write a directory for each way in which an adapter can be broken. The names are those of BROKEN."""
    variant(good, folder / "rank", r=64)
    variant(good, folder / "rank-that-is-not-theirs", r=4)
    variant(good, folder / "rank-as-text", r="8")
    variant(good, folder / "dora", use_dora=True)
    variant(good, folder / "ia3", peft_type="IA3")
    variant(good, folder / "smaller", change=lambda name, weight: weight[:, :64] if "lora_A" in name else weight[:64])
    variant(good, folder / "larger", change=lambda name, weight: torch.cat((weight, weight), int("lora_A" in name)))
    variant(good, folder / "deeper", rename=lambda name: name.replace("layers.2.", "layers.31."))
    variant(good, folder / "vision", rename=lambda name: name.replace("language_model.layers", "vision_tower.encoder.layers"))
    variant(good, folder / "halves", change=lambda name, weight: weight if "lora_A" in name else None)
    variant(good, folder / "empty", change=lambda name, weight: None)
    variant(good, folder / "integers", change=lambda name, weight: weight.to(torch.int64))
    for name, cut in (("truncated", 2), ("nothing", 10**9)):
        variant(good, folder / name)
        data = (folder / name / WEIGHTS).read_bytes()
        (folder / name / WEIGHTS).write_bytes(data[: len(data) // cut])
    variant(good, folder / "no-json")
    (folder / "no-json" / CONFIG).write_text("{")
    variant(good, folder / "no-config")
    (folder / "no-config" / CONFIG).unlink()
    variant(good, folder / "pickle")
    torch.save(load_file(good / WEIGHTS), folder / "pickle" / "adapter_model.bin")
    (folder / "pickle" / WEIGHTS).unlink()
    (folder / "link").symlink_to(shutil.copytree(good, folder.parent / "outside"))
    (folder / "linked-file").mkdir()
    for name in (CONFIG, WEIGHTS):
        (folder / "linked-file" / name).symlink_to(folder.parent / "outside" / name)


BROKEN = {
    "rank": "rank 64 is greater than max_lora_rank 16",
    "rank-that-is-not-theirs": "[8, 320], and [4, 320] would fit",
    "rank-as-text": "adapter_config.json",
    "dora": "DoRA",
    "ia3": "IA3",
    "smaller": "is not for this model",
    "larger": "is not for this model",
    "deeper": "layers.31",
    "vision": "vision_tower",
    "halves": "weights are missing",
    "empty": "weights are missing",
    "integers": "not floating-point numbers",
    "truncated": "cannot be read",
    "nothing": "cannot be read",
    "no-json": "adapter_config.json",
    "no-config": "no adapter_config.json",
    "pickle": "no adapter_model.safetensors",
    "link": "is not found, or not an adapter",
    "linked-file": "is not found, or not an adapter",
    "nowhere": "is not found, or not an adapter",
    "../outside": "is not found, or not an adapter",
    "/etc": "is not found, or not an adapter",
    "https://example.com/adapter": "is not found, or not an adapter",
    "llava-hf/an-adapter": "is not found, or not an adapter",
    "nul\0": "is not found, or not an adapter",
    "long" * 2000: "is not found, or not an adapter",
}
"""Paths of adapters that cannot be loaded, and a part of the error message."""
