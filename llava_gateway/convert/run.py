"""Runs a conversion from beginning to end."""

import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, LlavaConfig, LlavaNextConfig

from llava_gateway.convert import language, lora, projector, shards
from llava_gateway.convert.config import check_kind, dtype_of, result_config
from llava_gateway.convert.files import NEXT_PROCESSOR, PROCESSOR, write_processor, write_tokenizer
from llava_gateway.convert.names import split, without_buffers
from llava_gateway.convert.original import Original, open_original
from llava_gateway.convert.partial import check_target, partial
from llava_gateway.convert.source import ConvertError, LazyTensor, TensorFiles
from llava_gateway.convert.template import chat_template, choose_template, serve_flags
from llava_gateway.convert.tokens import IMAGE, Tokens, load_tokens
from llava_gateway.convert.verify import check_directory, check_shapes
from llava_gateway.convert.vision import Tower, load_tower


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
    """The base model of a delta, an adapter or a projector, as `source`: an original LLaVA or its language model."""
    vision_tower: str | None = None
    """A CLIP, as `source`, which replaces the one that config.json names."""
    template: str | None = None
    """The built-in chat template that the model was trained with. None: as the checkpoint says."""
    adapter: Path | None = None
    """The directory that is created for an adapter. None: the adapter is merged with its base model."""


@dataclass(frozen=True, slots=True)
class Result:
    """A conversion that has succeeded."""

    template: str
    """The name of the chat template."""
    serve_flags: list[str]
    """The flags that `serve` needs beside the target."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """All parts of the converted checkpoint. The weights are read when they are written."""

    llava: dict[str, Any]
    """The original config.json."""
    config: LlavaConfig | LlavaNextConfig
    tokens: Tokens
    template: str
    vision: Tower
    weights: dict[str, LazyTensor]
    """With the hub's names."""


def convert(job: Job, progress: shards.Progress) -> Result:
    """Convert an original checkpoint to `job.target`. The target appears complete or not at all.

    An interrupted conversion is continued. Raises ConvertError, and OSError if a file cannot be written.
    """
    check_target(job.target)
    if job.adapter:
        _check_adapter_target(job.adapter, job.target)
    files = TensorFiles()
    original = open_original(job.source, job.base, files, merges=job.adapter is None)
    adapter = original.adapter if job.adapter else None
    if job.adapter and not adapter:
        raise ConvertError(f"{job.source} is no LoRA; --adapter is for a LoRA")
    plan = _plan(job, original, files)
    dtype = getattr(torch, dtype_of(plan.llava))
    manifest = {
        "files": [_identity(path) for path in (*original.paths, *plan.vision.paths)],
        "config": plan.config.to_json_string(),
        "template": plan.template,
        "shard_bytes": job.shard_bytes,
    }
    files.close()
    with ExitStack() as stack:
        directory = stack.enter_context(partial(job.target, manifest))
        _check_disk_space(directory, sum(prod(weight.shape) for weight in plan.weights.values()) * dtype.itemsize)
        if job.adapter and adapter:
            lora.write_adapter(stack.enter_context(partial(job.adapter, manifest)), adapter, str(job.target), files)
            files.close()
        shards.write(directory, plan.weights, dtype, job.shard_bytes, progress)
        _write_small_files(directory, plan)
        check_directory(directory)
    flags = serve_flags(plan.template, plan.tokens)
    if job.adapter and adapter:
        flags += ["--lora-modules", f"{job.adapter.name}={job.adapter}", *adapter.serve_flags]
    return Result(plan.template, flags)


def _plan(job: Job, original: Original, files: TensorFiles) -> _Plan:
    """Return the parts of the result, whose weights fit its configuration. Raises ConvertError."""
    llava = original.config
    check_kind(llava)
    parts = split(without_buffers(original.tensors))
    vision = load_tower(job.vision_tower or str(llava.get("mm_vision_tower") or ""), parts.vision, files)
    activation, projection = projector.convert_projector(parts.projector)
    language.check(parts.language)
    tokens = load_tokens(original.tokenizer, llava)
    template = job.template or choose_template(llava, tokens, Path(job.source).resolve().name, is_delta=original.is_delta)
    rows = language.padded_rows(parts.language, tokens.size)
    weights = language.enlarge(parts.language, rows) | projection | parts.newline | without_buffers(vision.weights)
    config = result_config(llava, tokens, rows, vision.config, activation)
    check_shapes(config, {name: weight.shape for name, weight in weights.items()})
    return _Plan(llava, config, tokens, template, vision, weights)


def _write_small_files(directory: Path, plan: _Plan) -> None:
    """Write everything but the weights."""
    config, vision = plan.config, plan.vision
    grids = config.image_grid_pinpoints if isinstance(config, LlavaNextConfig) else ()
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
        pads=plan.llava.get("image_aspect_ratio") == "pad",
        grids=grids,
    )
    length = config.text_config.max_position_embeddings
    write_tokenizer(directory, plan.tokens.tokenizer, plan.tokens.special, IMAGE, length, NEXT_PROCESSOR if grids else PROCESSOR)
    (directory / "chat_template.jinja").write_text(chat_template(plan.template))


def _check_adapter_target(adapter: Path, target: Path) -> None:
    """Raise ConvertError if the adapter cannot be written to `adapter`."""
    check_target(adapter)
    if adapter.resolve() == target.resolve():
        raise ConvertError(f"--adapter {adapter} is the directory of the model; name another one")


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
