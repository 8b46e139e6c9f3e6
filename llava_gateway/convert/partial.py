"""The directory of an unfinished conversion: TARGET.partial."""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llava_gateway.convert.source import ConvertError

MANIFEST = "conversion.json"


def check_target(target: Path) -> None:
    """Raise ConvertError if `target` exists and is not an empty directory."""
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ConvertError(f"{target} is there already; name a directory that is not")


def partial_of(target: Path) -> Path:
    """Return the directory of the unfinished conversion to `target`."""
    return target.with_name(f"{target.name}.partial")


@contextmanager
def partial(target: Path, manifest: Mapping[str, Any]) -> Iterator[Path]:
    """Yield the directory of the conversion, and rename it to `target` if the block succeeds.

    The directory is new, or comes from an earlier run with the same `manifest`. It is locked against other runs. Raises ConvertError, and
    OSError.
    """
    directory = partial_of(target)
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _lock(descriptor, directory)
        _check_manifest(directory, manifest)
        yield directory
        directory.rename(target)
        (target / MANIFEST).unlink()
    finally:
        os.close(descriptor)


def _lock(descriptor: int, directory: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConvertError(f"{directory}: another conversion is at work there") from None


def _check_manifest(directory: Path, manifest: Mapping[str, Any]) -> None:
    path = directory / MANIFEST
    if all(entry == path for entry in directory.iterdir()):
        path.write_text(_text(manifest))
    elif not path.is_file() or path.read_text() != _text(manifest):
        raise ConvertError(f"{directory} is of a conversion from other files or with other options; remove it, or name another target")


def _text(manifest: Mapping[str, Any]) -> str:
    return json.dumps(manifest, indent=2)
