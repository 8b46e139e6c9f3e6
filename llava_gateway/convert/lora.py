"""LoRA adapters: each weight that one is for becomes W + s B A, s being alpha / r, or alpha / sqrt(r) for a rank-stabilised one."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from llava_gateway.convert.detect import LORA
from llava_gateway.convert.source import ConvertError, Files, Lazy, tensors

FACTOR = re.compile(r"base_model\.model\.(.+)\.lora_([AB])(?:\.default)?\.weight")
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
UNKNOWN = ("use_dora", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "modules_to_save", "lora_bias")
"""Keys of adapter_config.json that make another adapter of it, if they are anything but empty or false."""


def adapter_file(directory: Path) -> Path:
    """Raises ConvertError."""
    for name in WEIGHTS:
        if (directory / name).is_file():
            return directory / name
    raise ConvertError(f"{directory} has {LORA}, and neither {' nor '.join(WEIGHTS)}")


def base_name(directory: Path) -> str:
    """What adapter_config.json says that the adapter is for; empty if there is none, or it does not say."""
    try:
        return str(json.loads((directory / LORA).read_bytes()).get("base_model_name_or_path") or "")
    except (OSError, ValueError, AttributeError):
        return ""


def merged(base: Mapping[str, Lazy], directory: Path, files: Files) -> dict[str, Lazy]:
    """The base with the adapter of `directory` in it. Sums are computed in single precision. Raises ConvertError."""
    config = _config(directory / LORA)
    path = adapter_file(directory)
    factors: dict[str, dict[str, Lazy]] = {}
    for name, tensor in tensors([path], files).items():
        if not (found := FACTOR.fullmatch(name)):
            raise ConvertError(f"{path}: {name} is no factor of a LoRA")
        factors.setdefault(f"{found[1]}.weight", {})[found[2]] = tensor
    result = dict(base)
    for name, pair in factors.items():
        if name not in base:
            raise ConvertError(f"{path} is for {name}, which the base does not have; is it the model that the adapter was trained on?")
        if set(pair) != {"A", "B"}:
            raise ConvertError(f"{path}: {name} has a lora_{next(iter(pair))} alone")
        result[name] = _sum(base[name], pair["A"], pair["B"], config, f"{path}: {name}")
    return result


def _sum(weight: Lazy, a: Lazy, b: Lazy, config: dict[str, Any], what: str) -> Lazy:
    """W: (out, in), A: (r, in), B: (out, r)."""
    rank = config["r"]
    if a.shape != (rank, weight.shape[-1]) or b.shape != (weight.shape[0], rank):
        raise ConvertError(f"{what} is {list(weight.shape)} in the base, and the LoRA of rank {rank} {list(b.shape)} x {list(a.shape)}")
    scale = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)

    def read(files: Files) -> Tensor:
        return weight.read(files).float().addmm(b.read(files).float(), a.read(files).float(), alpha=scale)

    return Lazy(weight.shape, read)


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes())
        whole = config["peft_type"] == "LORA" and config["r"] > 0 and config["lora_alpha"] > 0
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConvertError(f"{path} is no configuration of a LoRA: {type(error).__name__} {error}") from error
    if not whole:
        raise ConvertError(f"{path} is no configuration of a LoRA: peft_type LORA, r and lora_alpha are needed")
    if strange := [key for key in UNKNOWN if config.get(key)]:
        raise ConvertError(f"{path} has {strange[0]}, which LLaVA's training does not set and which is not converted")
    if config.get("bias", "none") != "none":
        raise ConvertError(f"{path} has bias {config['bias']}; adapters without biases are converted")
    return dict(config)
