"""Reads LoRA adapters of LLaVA's training code, and merges them or writes them in peft's format for the converted base model.

Merging makes W + s B A of each adapted weight W. The scale s is alpha / r, or alpha / sqrt(r) if rank-stabilised.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from llava_gateway.convert.detect import LORA
from llava_gateway.convert.files import write_json
from llava_gateway.convert.shards import write_file
from llava_gateway.convert.source import ConvertError, LazyTensor, TensorFiles, tensors

FACTOR = re.compile(r"base_model\.model\.(.+)\.lora_([AB])(?:\.default)?\.weight")
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
UNSUPPORTED = ("use_dora", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "modules_to_save", "lora_bias")
"""The fields of adapter_config.json that are not supported, unless they are empty or false."""
LAYERS = "model.layers."
"""The beginning of the names of weights that vLLM can adapt at run time."""
DEFAULT_RANK = 16
RANKS = (DEFAULT_RANK, 32, 64, 128, 256, 320, 512)
"""The values of vLLM's --max-lora-rank from its default on."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter."""

    config: dict[str, Any]
    """The content of adapter_config.json."""
    pairs: dict[str, dict[str, LazyTensor]]
    """The factors `A` (r, in) and `B` (out, r) of each adapted weight, by LLaVA's name of the weight."""

    @property
    def rank(self) -> int:
        """The inner dimension of the factors."""
        return int(self.config["r"])

    @property
    def serve_flags(self) -> list[str]:
        """The flags that `serve` needs to accept the rank."""
        return [] if self.rank <= DEFAULT_RANK else ["--max-lora-rank", str(next(rank for rank in RANKS if rank >= self.rank))]


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


def load(directory: Path, base: Mapping[str, LazyTensor], files: TensorFiles) -> Adapter:
    """Return the adapter in `directory`, whose factors fit the weights of its base model. Raises ConvertError."""
    config = _config(directory / LORA)
    path = adapter_file(directory)
    pairs: dict[str, dict[str, LazyTensor]] = {}
    for name, tensor in tensors([path], files).items():
        if not (found := FACTOR.fullmatch(name)):
            raise ConvertError(f"{path}: {name} is no factor of a LoRA")
        pairs.setdefault(f"{found[1]}.weight", {})[found[2]] = tensor
    for name, pair in pairs.items():
        if name not in base:
            raise ConvertError(f"{path} is for {name}, which the base does not have; is it the model that the adapter was trained on?")
        if set(pair) != {"A", "B"}:
            raise ConvertError(f"{path}: {name} has a lora_{next(iter(pair))} alone")
        _check_shapes(base[name], pair, config["r"], f"{path}: {name}")
    return Adapter(config, pairs)


def merge(base: Mapping[str, LazyTensor], adapter: Adapter) -> dict[str, LazyTensor]:
    """Return the base model's weights merged with the adapter, in single precision."""
    scale = adapter.config["lora_alpha"] / (math.sqrt(adapter.rank) if adapter.config.get("use_rslora") else adapter.rank)
    return dict(base) | {name: _merge(base[name], pair["A"], pair["B"], scale) for name, pair in adapter.pairs.items()}


def check_loadable(adapter: Adapter) -> None:
    """Raise ConvertError if vLLM cannot load the adapter at run time: it adapts only the layers of the language model."""
    if not adapter.pairs:
        raise ConvertError("the adapter has no weights")
    if adapter.rank > RANKS[-1]:
        raise ConvertError(f"the adapter has rank {adapter.rank}, and vLLM takes at most {RANKS[-1]}; leave out --adapter to merge it")
    if others := [name for name in adapter.pairs if not name.startswith(LAYERS)]:
        raise ConvertError(f"the adapter is for {others[0]}, which vLLM cannot adapt at run time; leave out --adapter to merge it")


def write_adapter(directory: Path, adapter: Adapter, base: str, files: TensorFiles) -> None:
    """Write the adapter in peft's format, with the weight names of transformers' LLaVA. `base`: the directory of its base model.

    The whole adapter is in memory meanwhile. Raises ConvertError and OSError.
    """
    weights = {
        f"base_model.model.model.language_model.{_layer(name)}.lora_{half}.weight": pair[half].read(files).contiguous()
        for name, pair in adapter.pairs.items()
        for half in "AB"
    }
    # A list of names would adapt the vision tower, too: its layers have the same names.
    layers = "|".join(sorted({_layer(name).rpartition(".")[2] for name in adapter.pairs}))
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": adapter.rank,
        "lora_alpha": adapter.config["lora_alpha"],
        "use_rslora": bool(adapter.config.get("use_rslora")),
        "target_modules": rf".*language_model.*\.({layers})",
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    write_file(directory / WEIGHTS[0], weights)
    write_json(directory / LORA, config)


def _layer(name: str) -> str:
    """Return the name of a layer inside the language model. `name`: LLaVA's of its weight."""
    return name.removeprefix("model.").removesuffix(".weight")


def _check_shapes(weight: LazyTensor, pair: Mapping[str, LazyTensor], rank: int, name: str) -> None:
    """Raise ConvertError if the factors do not fit the weight, of shape (out, in). `name`: for the error message."""
    a, b = pair["A"].shape, pair["B"].shape
    if len(weight.shape) != 2 or a != (rank, weight.shape[1]) or b != (weight.shape[0], rank):
        raise ConvertError(f"{name} is {list(weight.shape)} in the base, and the LoRA of rank {rank} {list(b)} x {list(a)}")


def _merge(weight: LazyTensor, a: LazyTensor, b: LazyTensor, scale: float) -> LazyTensor:
    """Return W + s B A. Shapes: W (out, in), A (r, in), B (out, r)."""

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
