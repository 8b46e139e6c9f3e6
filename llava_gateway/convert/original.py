"""Opens an original checkpoint: a whole model, or a part of one together with its base model."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_gateway.convert import delta, lora
from llava_gateway.convert.detect import LORA, NON_LORA, PROJECTOR, original_kind, read_config
from llava_gateway.convert.locate import locate
from llava_gateway.convert.names import with_model_names, without_buffers
from llava_gateway.convert.source import ConvertError, LazyTensor, TensorFiles, tensors, weight_files

BASE = "--base"


@dataclass(frozen=True, slots=True)
class Original:
    """An original checkpoint, combined with its base model if it has one."""

    config: dict[str, Any]
    tensors: dict[str, LazyTensor]
    """The weights, with LLaVA's names."""
    paths: list[Path]
    """The files of the weights."""
    tokenizer: Path
    """The directory of the tokenizer."""
    adapter: lora.Adapter | None = None
    """The adapter if the checkpoint is a LoRA."""
    is_delta: bool = False


def open_original(name: str, base: str | None, files: TensorFiles, *, merges: bool) -> Original:
    """Find the checkpoint and open its tensors. Raises ConvertError.

    `name`, `base`: directories, or models on the hub. `merges`: the weights are those of the base model merged with the adapter.
    """
    source = locate(name, "SRC")
    config = read_config(source)
    kind = original_kind(source)
    if kind is None:
        if "vision_config" in config:
            raise ConvertError(f"{source} is in the Hugging Face layout already; serve it as it is")
        raise ConvertError(f"{source} is no original LLaVA checkpoint: its config.json must name mm_vision_tower")
    if kind == "merged":
        return _whole(source, config, base, files)
    if not base:
        raise ConvertError(f"{source} is no whole model; give the one that it was trained on as {BASE}{_hint(source, config)}")
    base_directory, paths, weights = _open_base(base, files)
    trained = [source / (NON_LORA if kind == "lora" else PROJECTOR)]
    weights |= with_model_names(tensors(trained, files))
    config = read_config(base_directory) | config
    if kind == "projector":
        return Original(config, weights, [*paths, *trained], base_directory)
    adapter = lora.load(source, weights, files)
    if merges:
        weights = lora.merge(weights, adapter)
    else:
        lora.check_loadable(adapter)
    return Original(config, weights, [*paths, *trained, lora.adapter_file(source), source / LORA], base_directory, adapter)


def _whole(source: Path, config: dict[str, Any], base: str | None, files: TensorFiles) -> Original:
    """Open a whole model, or a delta with its base model. Raises ConvertError."""
    paths = weight_files(source)
    weights = tensors(paths, files)
    if not delta.is_delta(weights, files):
        if base:
            raise ConvertError(f"{source} is a whole model; {BASE} is for adapters, projectors and deltas")
        return Original(config, weights, paths, source)
    if not base:
        raise ConvertError(f"the weights of {source} are a delta; give the LLaMA that it is for as {BASE}{_hint(source, config)}")
    _, base_paths, base_weights = _open_base(base, files)
    whole = delta.apply(without_buffers(weights), base_weights)
    return Original(config, whole, [*paths, *base_paths], source, is_delta=True)


def _open_base(base: str, files: TensorFiles) -> tuple[Path, list[Path], dict[str, LazyTensor]]:
    """Return the directory of a base model, its files of weights, and its weights. Raises ConvertError."""
    directory = locate(base, BASE)
    paths = weight_files(directory)
    weights = tensors(paths, files)
    if delta.is_delta(weights, files):
        raise ConvertError(f"{BASE}: the weights of {directory} are a delta; a whole model is needed")
    return directory, paths, weights


def _hint(source: Path, config: Mapping[str, Any]) -> str:
    """Return the end of an error message, with the name of the base model if the checkpoint has it."""
    name = lora.base_name(source) or config.get("_name_or_path")
    return f"; it says that this was {name}" if name else ""
