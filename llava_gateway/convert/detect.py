"""Detects original LLaVA checkpoints. The imports are light, because `serve` calls this module before it loads anything."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

Kind = Literal["merged", "lora", "projector"]
"""A whole model or a delta, a LoRA adapter with `non_lora_trainables.bin`, or `mm_projector.bin` alone. Deltas and the last two need their
base model."""
LFS_POINTER = b"version https://git-lfs"
LORA, NON_LORA, PROJECTOR = "adapter_config.json", "non_lora_trainables.bin", "mm_projector.bin"


def original_kind(path: Path) -> Kind | None:
    """Return the kind of an original checkpoint, or None for anything else, such as a converted checkpoint or a missing directory."""
    config = read_config(path)
    if "vision_config" in config:
        return None
    if (path / LORA).is_file() and ((path / NON_LORA).is_file() or _is_llava(config)):
        return "lora"
    if not _is_llava(config):
        return None
    has_weights = any(path.glob("pytorch_model*.bin")) or any(path.glob("model*.safetensors"))
    return "projector" if (path / PROJECTOR).is_file() and not has_weights else "merged"


def is_lfs_pointer(file: Path) -> bool:
    """Return whether the file is a git-lfs pointer instead of the file itself. Raises OSError."""
    with file.open("rb") as opened:
        return opened.read(len(LFS_POINTER)) == LFS_POINTER


def advice(path: Path) -> str | None:
    """Return one line with the exact command that converts an original checkpoint, or None for anything else."""
    if (kind := original_kind(path)) is None:
        return None
    name = path.resolve().name
    target = path.resolve().with_name(f"{name}-hf")
    needed = {"merged": "", "lora": " (BASE is the model that the adapter is for)", "projector": " (BASE is its language model)"}[kind]
    if kind == "merged" and "delta" in name.lower():  # its weights tell for certain, and only the conversion reads them
        needed = " (BASE is the LLaMA that the delta is for)"
    command = f"llava-gateway convert {shlex.quote(str(path))} {shlex.quote(str(target))}{' --base BASE' if needed else ''}"
    return f"{path} is an original LLaVA checkpoint; run `{command}`{needed}, and serve {target}"


def read_config(path: Path) -> dict[str, Any]:
    """Return the directory's config.json, or an empty dictionary if there is none or it cannot be read."""
    try:
        config = json.loads((path / "config.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def architecture(config: Mapping[str, Any]) -> str:
    """Return the architecture that config.json names, or an empty string."""
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else ""


def _is_llava(config: Mapping[str, Any]) -> bool:
    name = architecture(config)
    return "mm_vision_tower" in config or (name.startswith("Llava") and name.endswith("ForCausalLM"))
