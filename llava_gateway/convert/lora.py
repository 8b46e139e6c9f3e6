"""Merges LoRA adapters: each adapted weight W becomes W + s B A. The scale s is alpha / r, or alpha / sqrt(r) if rank-stabilised."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from llava_gateway.convert.detect import LORA
from llava_gateway.convert.source import ConvertError, LazyTensor, TensorFiles, tensors

FACTOR = re.compile(r"base_model\.model\.(.+)\.lora_([AB])(?:\.default)?\.weight")
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
UNSUPPORTED = ("use_dora", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "modules_to_save", "lora_bias")
"""The fields of adapter_config.json that are not supported, unless they are empty or false."""


def adapter_file(directory: Path) -> Path:
    """Return the file of the adapter's weights. Raises ConvertError."""
    for name in WEIGHTS:
        if (directory / name).is_file():
            return directory / name
    raise ConvertError(f"{directory} has {LORA}, and neither {' nor '.join(WEIGHTS)}")


def base_name(directory: Path) -> str:
    """Return the name of the base model in adapter_config.json, or an empty string."""
    try:
        return str(json.loads((directory / LORA).read_bytes()).get("base_model_name_or_path") or "")
    except (OSError, ValueError, AttributeError):
        return ""


def merge(base: Mapping[str, LazyTensor], directory: Path, files: TensorFiles) -> dict[str, LazyTensor]:
    """Return the base model's weights merged with the adapter in `directory`, in single precision. Raises ConvertError."""
    config = _config(directory / LORA)
    path = adapter_file(directory)
    factors: dict[str, dict[str, LazyTensor]] = {}
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
        result[name] = _merge(base[name], pair["A"], pair["B"], config, f"{path}: {name}")
    return result


def _merge(weight: LazyTensor, a: LazyTensor, b: LazyTensor, config: dict[str, Any], name: str) -> LazyTensor:
    """Return W + s B A. Shapes: W (out, in), A (r, in), B (out, r). `name`: for error messages."""
    rank = config["r"]
    if a.shape != (rank, weight.shape[-1]) or b.shape != (weight.shape[0], rank):
        raise ConvertError(f"{name} is {list(weight.shape)} in the base, and the LoRA of rank {rank} {list(b.shape)} x {list(a.shape)}")
    scale = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)

    def read(files: TensorFiles) -> Tensor:
        return weight.read(files).float().addmm(b.read(files).float(), a.read(files).float(), alpha=scale)

    return LazyTensor(weight.shape, read)


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes())
        is_complete = config["peft_type"] == "LORA" and config["r"] > 0 and config["lora_alpha"] > 0
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConvertError(f"{path} is no configuration of a LoRA: {type(error).__name__} {error}") from error
    if not is_complete:
        raise ConvertError(f"{path} is no configuration of a LoRA: peft_type LORA, r and lora_alpha are needed")
    if unsupported := [key for key in UNSUPPORTED if config.get(key)]:
        raise ConvertError(f"{path} has {unsupported[0]}, which LLaVA's training does not set and which is not converted")
    if config.get("bias", "none") != "none":
        raise ConvertError(f"{path} has bias {config['bias']}; adapters without biases are converted")
    return dict(config)
