"""Writes weights to safetensors files of limited size, one after the other. Complete files of an earlier run are kept."""

import math
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from llava_gateway.convert.files import write_json
from llava_gateway.convert.source import INDEXES, WHOLE, ConvertError, LazyTensor, TensorFiles
from llava_gateway.convert.verify import stored_shapes

UNFINISHED = "unfinished-"
"""The prefix of temporary directories."""
Progress = Callable[[int, int], None]
"""A function that is called with the number of bytes written and the total number."""


def write(directory: Path, weights: Mapping[str, LazyTensor], dtype: torch.dtype, limit: int, progress: Progress) -> None:
    """Write the weights to `directory`. One file's weights are in memory at a time.

    `limit`: the greatest size of a file, in bytes; a larger tensor gets its own file. Raises ConvertError and OSError.
    """
    sizes = {name: math.prod(tensor.shape) * dtype.itemsize for name, tensor in weights.items()}
    shards = _divide(sizes, limit)
    total, done = sum(sizes.values()), 0
    files = TensorFiles()
    for left in directory.glob(f"{UNFINISHED}*"):  # from a run that was killed
        shutil.rmtree(left)
    progress(done, total)
    for path, names in zip(_paths(directory, len(shards)), shards, strict=True):
        if not _is_complete(path, {name: weights[name].shape for name in names}):
            write_file(path, {name: weights[name].read(files).to(dtype).contiguous() for name in names})
            files.close()
        done += sum(sizes[name] for name in names)
        progress(done, total)
    if len(shards) > 1:
        weight_map = {name: path.name for path, names in zip(_paths(directory, len(shards)), shards, strict=True) for name in names}
        write_json(directory / INDEXES[0], {"metadata": {"total_size": total}, "weight_map": weight_map})


def _divide(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Return the names of the tensors in each file, in order."""
    shards: list[list[str]] = [[]]
    room = limit
    for name, size in sizes.items():
        if size > room and shards[-1]:
            shards.append([])
            room = limit
        shards[-1].append(name)
        room -= size
    return shards


def _paths(directory: Path, count: int) -> list[Path]:
    if count == 1:
        return [directory / WHOLE[0]]
    return [directory / f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]


def _is_complete(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    try:
        return stored_shapes([path]) == shapes
    except (FileNotFoundError, SafetensorError):
        return False


def write_file(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write the file in a temporary directory, and rename it when it is complete and on the disk. Raises ConvertError and OSError."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=UNFINISHED) as folder:
        unfinished = Path(folder) / path.name
        try:
            save_file(dict(tensors), unfinished, metadata={"format": "pt"})
        except (SafetensorError, RuntimeError) as error:
            raise ConvertError(f"{path} cannot be written: {error}") from error
        unfinished.chmod(path.parent.stat().st_mode & 0o666)  # safetensors makes the file readable only by its owner
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        unfinished.replace(path)
