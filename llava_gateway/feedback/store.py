"""Stores votes on disk: `feedback.jsonl` has a line for each vote, oldest first, and `images/` has each image once, named by its digest.

An image file gets its name when it is complete, and before the line that refers to it is written. A line is appended by one write, and is
on the disk before the client gets the response. A crash leaves at most an incomplete last line. Readers skip such a line, and the next vote
begins a new line. Several servers may write to one directory.
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
MEASURE_INTERVAL = 60.0
"""The interval, in seconds, at which the directory's size is measured again: other programs may write or delete files there."""


class Full(Exception):
    """The directory has reached its size limit."""


class Store:
    """The votes in one directory. The methods block, and may be called from one thread at a time."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Create the folder, readable only by its owner, if it does not exist. Raises OSError if the folder is not writable."""
        self._log = folder / LOG
        self._images = folder / IMAGES
        self._folder = folder
        self._max_bytes = max_bytes
        with self._locked_log():
            for leftover in self._images.glob(".*"):
                leftover.unlink()
            tempfile.TemporaryFile(dir=self._images).close()
            self._measure()

    def add(self, vote: Vote, images: Mapping[str, bytes]) -> None:
        """Add a vote. When this method returns, the vote and its images are on the disk.

        `images`: the files by their names in the vote. Raises Full or OSError. In that case the vote is not stored, but some image files
        may remain without a vote.
        """
        line = vote.model_dump_json().encode() + b"\n"
        with self._locked_log() as log:
            new = {name: data for name, data in images.items() if not (self._images / name).exists()}
            size = len(line) + sum(map(len, new.values()))
            if time.monotonic() - self._measured_at > MEASURE_INTERVAL:
                self._measure()
            if self._bytes + size > self._max_bytes:
                raise Full
            for name, data in new.items():
                self._write_image(name, data)
            if new:
                _sync(self._images)
            _append(log, line)
            self._bytes += size

    def _write_image(self, name: str, data: bytes) -> None:
        temporary = self._images / f".{name}"
        try:
            with open(temporary, "wb", opener=_open_private) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._images / name)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    def _measure(self) -> None:
        files = (entry for folder in (self._folder, self._images) for entry in os.scandir(folder) if entry.is_file())
        self._bytes = sum(file.stat().st_size for file in files)
        self._measured_at = time.monotonic()

    @contextmanager
    def _locked_log(self) -> Iterator[int]:
        """Open the log and lock it against other writers within the block. Yield its descriptor.

        The log is opened for each vote, because the operator may have moved it away.
        """
        self._folder.mkdir(0o700, parents=True, exist_ok=True)
        self._images.mkdir(0o700, exist_ok=True)
        is_new = not self._log.exists()
        log = _open_private(str(self._log), os.O_RDWR | os.O_CREAT | os.O_APPEND)
        try:
            fcntl.flock(log, fcntl.LOCK_EX)
            if is_new:
                _sync(self._folder)
            yield log
        finally:
            os.close(log)


def read(folder: Path) -> Iterator[Vote | None]:
    """Yield the votes, oldest first, and None for each line that is not a vote, such as an incomplete one. Raises OSError."""
    with (folder / LOG).open("rb") as log:
        for line in log:
            try:
                yield Vote.model_validate_json(line)
            except ValidationError:
                yield None


def _append(log: int, line: bytes) -> None:
    """Append the line with one write, or leave the log unchanged and raise OSError."""
    size = os.fstat(log).st_size
    if size and os.pread(log, 1, size - 1) != b"\n":
        line = b"\n" + line
    try:
        written = os.write(log, line)
        if written < len(line):  # the disk is full
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(log)
    except OSError:
        os.ftruncate(log, size)
        raise


def _open_private(path: str, flags: int) -> int:
    """Open a file that only its owner may read, and return its descriptor."""
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _sync(folder: Path) -> None:
    """Write the folder's entries to the disk, so that they survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
