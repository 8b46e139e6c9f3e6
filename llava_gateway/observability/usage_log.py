"""Who used how much: a line of JSON for each request that reached the engine. A line is one write to a file opened for appending, so that
what is written survives the death of this process, and several may write to one file. A line that a full disk or a power failure has torn
is cut off at the next start; each writer holds a shared lock, so that nobody cuts what another is about to finish."""

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

BEGINNING = b'{"time":"'
"""Of every line."""
TAIL = 64 << 10
"""Bytes at the end of the file that are looked at; a line is far shorter."""


class UsageLog:
    def __init__(self, path: Path) -> None:
        """Raises OSError if it cannot be written. A FIFO needs a reader. Nothing waits: what a FIFO or a device cannot take is lost."""
        self.path = path
        self._failing = self._torn = False
        """`_torn`: the file ends within a line, and the next one has to begin on its own."""
        self._file = self._open()

    def write(self, context: RequestContext, status: int, seconds: float) -> None:
        """A full disk costs lines, which the metrics count, and no answer."""
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
                "text_tokens": usage.prompt_tokens - usage.image_tokens,
                "image_tokens": usage.image_tokens,
                "cached_tokens": usage.cached_tokens,
                "completion_tokens": usage.completion_tokens,
                "images": len(context.images),
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
        self._follow()
        line = b"\n" * self._torn + line
        written = os.write(self._file.fileno(), line)
        self._torn = written < len(line)
        if self._torn:  # the disk has filled up within the line; the next one begins on its own
            self._torn = os.write(self._file.fileno(), line[written:]) < len(line) - written

    def _follow(self) -> None:
        """Begin a new file where the old one has been moved away, as logrotate does."""
        try:
            moved = not os.path.samestat(self.path.stat(), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            moved = True
        if moved:
            old, self._file = self._file, self._open()
            old.close()

    def _open(self) -> FileIO:
        try:
            file = open(self.path, "ab", buffering=0, opener=_without_waiting)  # noqa: SIM115
        except OSError as error:
            if error.errno == errno.ENXIO:
                raise OSError(errno.ENXIO, "Is a socket, or a FIFO that nobody reads") from error
            raise
        mode = os.fstat(file.fileno()).st_mode
        if stat.S_ISBLK(mode):
            file.close()
            raise OSError(errno.ENOTSUP, "Is a block device")
        self._torn = stat.S_ISREG(mode) and not _mend(self.path, file)
        return file


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, 0o600)


def _mend(path: Path, file: FileIO) -> bool:
    """Whether the file ends with a whole line. A line that was begun is cut off, unless somebody else writes to the file, too. Takes the
    writer's lock."""
    try:
        alone = _lock(file, fcntl.LOCK_EX)
        try:
            size, rest = _last_line(path)
            if rest and alone and (kept := _kept(rest)) is not None:
                file.truncate(size - len(rest) + kept)
                return kept == 0
            return not rest
        finally:
            _lock(file, fcntl.LOCK_SH)
    except OSError:
        return False


def _last_line(path: Path) -> tuple[int, bytes]:
    """The file's size, and its end without a line feed, of TAIL bytes at most."""
    with path.open("rb") as reader:
        size = reader.seek(0, os.SEEK_END)
        reader.seek(max(0, size - TAIL))
        return size, reader.read(TAIL).rpartition(b"\n")[2]


def _kept(rest: bytes) -> int | None:
    """How much of it stays: all of a line of which the line feed alone is missing, nothing of one that was begun. None: it is none of a
    gateway's, and not touched."""
    line = rest.rstrip(b"\0")  # as a power failure may leave them
    if not (line.startswith(BEGINNING) or BEGINNING.startswith(line)):
        return None
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError:
        return 0
    return len(line)


def _lock(file: FileIO, kind: int) -> bool:
    """At once or not at all. Where there are no locks, as on some network file systems, nobody has one."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
