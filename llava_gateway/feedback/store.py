"""Votes on disk: `feedback.jsonl`, a line for each vote, oldest first, and `images/`, each picture once, by its digest.

A picture is whole before it has its name, and is there before the line that names it. A line is one write to a file opened for appending,
and on the disk before the vote is answered. A death in between leaves at most a torn last line, which readers leave out and the next vote
goes below. Several servers may write to one directory.
"""

import errno
import fcntl
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from llava_gateway.feedback.record import Vote

LOG = "feedback.jsonl"
IMAGES = "images"
COUNT_INTERVAL = 60.0
"""Seconds for which the directory's size is reckoned rather than counted: others may write to it, or delete."""


class Full(Exception):
    """The directory holds as much as it may."""


class Store:
    """One directory. Blocks; one thread at a time."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Makes the folder, for its owner alone, if there is none. Raises OSError if it cannot be written to."""
        self._log = folder / LOG
        self._images = folder / IMAGES
        self._folder = folder
        self._max_bytes = max_bytes
        with self._writing():
            for leftover in self._images.glob(".*"):
                leftover.unlink()
            tempfile.TemporaryFile(dir=self._images).close()
            self._count()

    def add(self, vote: Vote, images: Mapping[str, bytes]) -> None:
        """`images`: the files by the names that the vote has for them. When this returns, all of it is on the disk. Raises Full or OSError;
        then nothing counts, though pictures may be there that no vote names."""
        line = vote.model_dump_json().encode() + b"\n"
        with self._writing() as log:
            new = {name: data for name, data in images.items() if not (self._images / name).exists()}
            size = len(line) + sum(map(len, new.values()))
            if time.monotonic() - self._counted > COUNT_INTERVAL:
                self._count()
            if self._bytes + size > self._max_bytes:
                raise Full
            for name, data in new.items():
                self._keep(name, data)
            if new:
                _sync(self._images)
            _append(log, line)
            self._bytes += size

    def _keep(self, name: str, data: bytes) -> None:
        temporary = self._images / f".{name}"
        try:
            with open(temporary, "wb", opener=_private) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._images / name)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    def _count(self) -> None:
        files = (entry for folder in (self._folder, self._images) for entry in os.scandir(folder) if entry.is_file())
        self._bytes = sum(file.stat().st_size for file in files)
        self._counted = time.monotonic()

    @contextmanager
    def _writing(self) -> Iterator[int]:
        """The log, held against other writers. (It is opened for each vote: the operator may have moved it away.)"""
        self._folder.mkdir(0o700, parents=True, exist_ok=True)
        self._images.mkdir(0o700, exist_ok=True)
        is_new = not self._log.exists()
        log = _private(str(self._log), os.O_RDWR | os.O_CREAT | os.O_APPEND)
        try:
            fcntl.flock(log, fcntl.LOCK_EX)
            if is_new:
                _sync(self._folder)
            yield log
        finally:
            os.close(log)


def read(folder: Path) -> Iterator[Vote | None]:
    """The votes, oldest first; None for a line that is none, such as one that a crash has torn. Raises OSError."""
    with (folder / LOG).open("rb") as log:
        for line in log:
            try:
                yield Vote.model_validate_json(line)
            except ValidationError:
                yield None


def _append(log: int, line: bytes) -> None:
    size = os.fstat(log).st_size
    if size and os.pread(log, 1, size - 1) != b"\n":
        line = b"\n" + line
    try:
        written = os.write(log, line)
        if written < len(line):  # the disk has filled up within the line
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(log)
    except OSError:
        os.ftruncate(log, size)
        raise


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _sync(folder: Path) -> None:
    """Have names in the folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
