"""Runs a conversion from beginning to end."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from llava_gateway.convert import language, lora, projector, shards
from llava_gateway.convert.config import check_kind, dtype_of, result_config
from llava_gateway.convert.detect import LORA, NON_LORA, PROJECTOR, original_kind, read_config
from llava_gateway.convert.files import write_processor, write_tokenizer
from llava_gateway.convert.locate import locate
from llava_gateway.convert.names import split, with_model_names, without_buffers
from llava_gateway.convert.partial import check_target, partial
from llava_gateway.convert.source import ConvertError, LazyTensor, TensorFiles, tensors, weight_files
from llava_gateway.convert.tokens import IMAGE, chat_template, load_tokens
from llava_gateway.convert.verify import check_directory, check_shapes
from llava_gateway.convert.vision import load_tower


@dataclass(frozen=True, slots=True)
class Job:
    """The options of a conversion."""

    source: str
    """A directory, or a model on the hub."""
    target: Path
    """The directory that is created."""
    shard_bytes: int
    """The greatest size of a file of weights, in bytes. At most as many bytes are in memory at once."""
    base: str | None = None
    """The base model of an adapter or a projector, as `source`: an original LLaVA or a LLaMA."""
    vision_tower: str | None = None
    """A CLIP, as `source`, which replaces the one that config.json names."""


@dataclass(frozen=True, slots=True)
class _Original:
    """The original checkpoint, merged with its base model if it has one."""

    config: dict[str, Any]
    tensors: dict[str, LazyTensor]
    """The weights, with LLaVA's names."""
    paths: list[Path]
    """The files of the weights."""
    tokenizer: Path
    """The directory of the tokenizer."""


def convert(job: Job, progress: shards.Progress) -> None:
    """Convert an original checkpoint to `job.target`. The target appears complete or not at all.

    An interrupted conversion is continued. Raises ConvertError, and OSError if a file cannot be written.
    """
    check_target(job.target)
    files = TensorFiles()
    original = _original(job, files)
    llava = original.config
    check_kind(llava)
    parts = split(without_buffers(original.tensors))
    vision = load_tower(job.vision_tower or str(llava.get("mm_vision_tower") or ""), parts.vision, files)
    activation, projection = projector.convert_projector(parts.projector)
    language.check(parts.language, files)
    tokens = load_tokens(original.tokenizer, llava)
    rows = language.padded_rows(parts.language, tokens.size)
    weights = language.enlarge(parts.language, rows) | projection | without_buffers(vision.weights)
    config = result_config(llava, tokens, rows, vision.config, activation)
    check_shapes(config, {name: weight.shape for name, weight in weights.items()})
    dtype = getattr(torch, dtype_of(llava))
    manifest = {
        "files": [_identity(path) for path in (*original.paths, *vision.paths)],
        "config": config.to_json_string(),
        "shard_bytes": job.shard_bytes,
    }
    files.close()
    with partial(job.target, manifest) as directory:
        _check_disk_space(directory, sum(prod(weight.shape) for weight in weights.values()) * dtype.itemsize)
        shards.write(directory, weights, dtype, job.shard_bytes, progress)
        config.save_pretrained(directory)
        GenerationConfig.from_model_config(config.text_config).save_pretrained(directory)
        write_processor(
            directory,
            side=vision.config.image_size,
            patch=vision.config.patch_size,
            strategy=config.vision_feature_select_strategy,
            image_token=IMAGE,
            mean=vision.mean,
            std=vision.std,
            pads=llava.get("image_aspect_ratio") == "pad",
        )
        write_tokenizer(directory, tokens.tokenizer, tokens.special, IMAGE, config.text_config.max_position_embeddings)
        (directory / "chat_template.jinja").write_text(chat_template(llava))
        check_directory(directory)


def _original(job: Job, files: TensorFiles) -> _Original:
    """Find the checkpoint and open its tensors. Raises ConvertError."""
    source = locate(job.source, "SRC")
    config = read_config(source)
    kind = original_kind(source)
    if kind is None:
        if "vision_config" in config:
            raise ConvertError(f"{source} is in the Hugging Face layout already; serve it as it is")
        raise ConvertError(f"{source} is no original LLaVA checkpoint: its config.json must name mm_vision_tower")
    if kind == "merged":
        if job.base:
            raise ConvertError(f"{source} is a whole model; --base is for adapters and projectors")
        paths = weight_files(source)
        return _Original(config, tensors(paths, files), paths, source)
    if not job.base:
        raise ConvertError(f"{source} is no whole model; give the one that it was trained on as --base{_hint(source, config)}")
    base = locate(job.base, "--base")
    paths = weight_files(base)
    trained = [source / (NON_LORA if kind == "lora" else PROJECTOR)]
    merged = tensors(paths, files) | with_model_names(tensors(trained, files))
    if kind == "lora":
        merged = lora.merge(merged, source, files)
        trained += [lora.adapter_file(source), source / LORA]
    return _Original(read_config(base) | config, merged, [*paths, *trained], base)


def _hint(source: Path, config: Mapping[str, Any]) -> str:
    """Return the end of an error message, with the name of the base model if the checkpoint has it."""
    name = lora.base_name(source) or config.get("_name_or_path")
    return f"; it says that this was {name}" if name else ""


def _identity(path: Path) -> list[Any]:
    """Return values that change when the file is replaced."""
    stat = path.stat()
    return [str(path.resolve()), stat.st_size, stat.st_mtime_ns]


def _check_disk_space(directory: Path, needed: int) -> None:
    """Raise ConvertError if the disk has no space for `needed` bytes. The files of an earlier run count as written."""
    written = sum(path.stat().st_size for path in directory.iterdir())
    free = shutil.disk_usage(directory).free
    if free < needed - written:
        raise ConvertError(f"{directory} needs {(needed - written) / 1e9:.1f} GB more, and the disk has {free / 1e9:.1f} GB")
