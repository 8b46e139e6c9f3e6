"""Converted checkpoints, and a comparison with the demo model."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from helpers import original_checkpoints as originals
from safetensors.torch import load_file
from torch import Tensor

from llava_gateway.demo import CHECKPOINT

TOWER = "openai/clip-vit-large-patch14-336"
ADDED_ROWS = ("language_model.lm_head.weight", "language_model.model.embed_tokens.weight")


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "llava_gateway", "convert", *map(str, arguments)]


def weights_of(directory: Path) -> dict[str, Tensor]:
    return {name: tensor for path in directory.glob("*.safetensors") for name, tensor in load_file(path).items()}


def check_is_the_demo(directory: Path, changed: dict[str, Tensor] | None = None) -> None:
    """All weights are the demo model's, to the bit, but those that `changed` has."""
    wanted = {name: tensor.float() for name, tensor in load_file(CHECKPOINT / "model.safetensors").items()} | (changed or {})
    found = weights_of(directory)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        rows = found[name][: len(tensor)] if name in ADDED_ROWS else found[name]
        torch.testing.assert_close(rows, tensor, rtol=0, atol=1e-6 if name in (changed or {}) else 0)


def convert_demo(folder: Path) -> Path:
    """Return the converted checkpoint of the demo model.

    The original is a LLaVA v1.5 in two pickles; its vision tower is in the hub's cache.
    """
    commit = "ce19dc912ca5cd21c8a653c79e251e808ccabcd1"
    repository = folder / "hub" / f"models--{TOWER.replace('/', '--')}"
    originals.demo_clip(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    originals.demo_original(folder / "llava-v1.5-demo", TOWER, shards=2)
    environment = os.environ | {"HF_HUB_CACHE": str(folder / "hub"), "HF_HUB_OFFLINE": "1"}
    asked = command("llava-v1.5-demo", "my model", "--max-shard-mb", 2)
    ended = subprocess.run(asked, capture_output=True, text=True, timeout=120, cwd=folder, env=environment)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "llava-gateway serve 'my model'" in ended.stdout
    return folder / "my model"


def write_base(directory: Path) -> dict[str, Tensor]:
    """The demo's language model alone, as a LLaMA."""
    weights = {name: tensor for name, tensor in originals.demo_weights().items() if "mm_projector" not in name and "vision" not in name}
    config = {key: originals.LLAVA[key] for key in ("max_position_embeddings", "rms_norm_eps")} | originals.DEMO
    originals.write_checkpoint(directory, weights, config | {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, shards=2)
    originals.demo_tokenizer(directory)
    return weights
