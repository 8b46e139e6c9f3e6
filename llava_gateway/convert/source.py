"""Reads the tensors of a checkpoint lazily: names and shapes first, and the values only when they are needed."""

import json
import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from llava_gateway.convert.detect import is_lfs_pointer

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WHOLE = ("model.safetensors", "pytorch_model.bin")


class ConvertError(Exception):
    """An error that the command reports in one line."""


class TensorFiles:
    """Files of tensors, mapped into memory. A tensor takes memory only after it is read, and until `close`."""

    def __init__(self) -> None:
        self._open: dict[Path, dict[str, Tensor]] = {}

    def read(self, path: Path) -> dict[str, Tensor]:
        """Return the tensors of the file by name. Raises ConvertError."""
        if path not in self._open:
            self._open[path] = _load(path)
        return self._open[path]

    def close(self) -> None:
        """Free the memory of all files. They can be read again."""
        self._open.clear()


@dataclass(frozen=True, slots=True)
class LazyTensor:
    """A tensor that is read or computed later."""

    shape: tuple[int, ...]
    read: Callable[[TensorFiles], Tensor]
    """Returns the tensor. Raises ConvertError."""


def weight_files(directory: Path) -> list[Path]:
    """Return the files of a model's weights. Raises ConvertError if files are missing."""
    for index in INDEXES:
        if (directory / index).is_file():
            return _sharded(directory, index)
    for name in WHOLE:
        if (directory / name).is_file():
            return [directory / name]
    raise ConvertError(f"{directory} has no weights: neither {' nor '.join((*WHOLE, *INDEXES))} is there")


def tensors(paths: Iterable[Path], files: TensorFiles) -> dict[str, LazyTensor]:
    """Return all tensors of the files by name. Raises ConvertError."""
    return {name: _lazy(path, name, tensor) for path in paths for name, tensor in files.read(path).items()}


def _lazy(path: Path, name: str, tensor: Tensor) -> LazyTensor:
    return LazyTensor(tuple(tensor.shape), lambda files: files.read(path)[name])


def _sharded(directory: Path, index: str) -> list[Path]:
    """Return the files that an index lists. Raises ConvertError."""
    try:
        names = sorted(set(json.loads((directory / index).read_bytes())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConvertError(f"{directory / index} is no index of weights: {error}") from error
    if missing := [name for name in names if not (directory / name).is_file()]:
        raise ConvertError(f"{directory / missing[0]} is missing, and {index} lists it; download the checkpoint again")
    return [directory / name for name in names]


def _load(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name. No code in a pickle is executed. Raises ConvertError."""
    try:
        if is_lfs_pointer(path):
            raise ConvertError(f"{path} is a pointer of git-lfs and not the weights; run `git lfs pull`")
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise ConvertError(f"{path} is no file of tensors alone, and is not opened: any other pickle could run code") from error
    except (OSError, RuntimeError, ValueError, EOFError, SafetensorError) as error:
        raise ConvertError(f"{path} cannot be read: {str(error).splitlines()[0] if str(error) else type(error).__name__}") from error
    if not isinstance(loaded, dict) or not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in loaded.items()):
        raise ConvertError(f"{path} is no dictionary of tensors")
    return loaded
