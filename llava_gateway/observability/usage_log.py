"""The usage log: a file with one line of JSON for each request that reached the engine.

A line is one write to a file that is open for appending. So written lines survive the death of this process, and several processes may
write to one file. A line that a full disk or a power failure left incomplete is removed at the next start. Each writer holds a shared lock,
so that no process removes a line that another one is about to complete.
"""

import errno
import fcntl
import logging
import os
import stat
import time
from io import FileIO
from pathlib import Path

import orjson

from llava_gateway.observability import metrics
from llava_gateway.observability.context import RequestContext

log = logging.getLogger(__name__)

LINE_START = b'{"time":"'
"""The first bytes of every line."""
TAIL = 64 << 10
"""Bytes at the end of the file that are inspected. A line is far shorter."""


class UsageLog:
    """Writes the usage log. A file that has been renamed, as logrotate does, is replaced by a new one."""

    def __init__(self, path: Path) -> None:
        """Open the file. Raises OSError if it cannot be written; a FIFO needs a reader.

        Writing never blocks: a line that a FIFO or a device cannot take is lost.
        """
        self.path = path
        self._failing = False
        """Whether the last write failed. An outage is logged once."""
        self._torn = False
        """Whether the file ends within a line. The next line starts with a line feed then."""
        self._file = self._open()

    def write(self, context: RequestContext, status: int, seconds: float) -> None:
        """Write the line of a request that took `seconds`. Raises nothing: the metrics count a failure, such as a full disk."""
        usage = context.usage
        line = orjson.dumps(
            {
                "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "id": context.id,
                "key": context.key_name or None,
                "model": context.model,
                "status": status,
                "code": context.code,
                "seconds": round(seconds, 3),
                "text_tokens": usage.text_tokens,
                "image_tokens": usage.image_tokens,
                "video_tokens": usage.video_tokens,
                "cached_tokens": usage.cached_tokens,
                "completion_tokens": usage.completion_tokens,
                "images": len(context.images),
                "videos": len(context.videos),
            }
        )
        try:
            self._append(line + b"\n")
        except OSError as error:
            metrics.USAGE_LOG_FAILURES.inc()
            if not self._failing:
                log.error("The usage log cannot be written: %s", error.strerror)
            self._failing = True
        else:
            self._failing = False

    def _append(self, line: bytes) -> None:
        self._reopen_if_moved()
        line = b"\n" * self._torn + line
        written = os.write(self._file.fileno(), line)
        self._torn = written < len(line)
        if self._torn:  # the disk has filled up within the line
            self._torn = os.write(self._file.fileno(), line[written:]) < len(line) - written

    def _reopen_if_moved(self) -> None:
        """Start a new file if the old one has been renamed or deleted."""
        try:
            moved = not os.path.samestat(self.path.stat(), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            moved = True
        if moved:
            old, self._file = self._file, self._open()
            old.close()

    def _open(self) -> FileIO:
        try:
            file = open(self.path, "ab", buffering=0, opener=_open_without_blocking)  # noqa: SIM115
        except OSError as error:
            if error.errno == errno.ENXIO:
                raise OSError(errno.ENXIO, "Is a socket, or a FIFO that nobody reads") from error
            raise
        mode = os.fstat(file.fileno()).st_mode
        if stat.S_ISBLK(mode):
            file.close()
            raise OSError(errno.ENOTSUP, "Is a block device")
        self._torn = stat.S_ISREG(mode) and not _remove_torn_line(self.path, file)
        return file


def _open_without_blocking(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, 0o600)


def _remove_torn_line(path: Path, file: FileIO) -> bool:
    """Remove an incomplete last line, unless another process writes to the file, too. Return whether the file ends with a complete line.

    Afterwards the file has this writer's shared lock.
    """
    try:
        alone = _lock(file, fcntl.LOCK_EX)
        try:
            size, rest = _last_line(path)
            if rest and alone and (kept := _valid_length(rest)) is not None:
                file.truncate(size - len(rest) + kept)
                return kept == 0
            return not rest
        finally:
            _lock(file, fcntl.LOCK_SH)
    except OSError:
        return False


def _last_line(path: Path) -> tuple[int, bytes]:
    """Return the file's size, and the bytes after its last line feed, TAIL bytes at most."""
    with path.open("rb") as reader:
        size = reader.seek(0, os.SEEK_END)
        reader.seek(max(0, size - TAIL))
        return size, reader.read(TAIL).rpartition(b"\n")[2]


def _valid_length(rest: bytes) -> int | None:
    """Return how many bytes of an incomplete line stay in the file.

    All of them if only the line feed is missing; 0 for a part of a line. None: this is not a line of a gateway, and is not touched.
    """
    line = rest.rstrip(b"\0")  # a power failure may leave zeros
    if not (line.startswith(LINE_START) or LINE_START.startswith(line)):
        return None
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError:
        return 0
    return len(line)


def _lock(file: FileIO, kind: int) -> bool:
    """Take a lock of this kind without waiting, and return whether this succeeded. It fails on network file systems without locks."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
