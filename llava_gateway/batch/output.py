"""The output of a batch: a file of answers that only grows. Each line is one write, so the next run can resume after any failure."""

import fcntl
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

import orjson

from llava_gateway.batch.lines import INVALID_CODES, BatchError, InvalidLine, RequestLine


@dataclass(frozen=True, slots=True)
class WrittenLine:
    """A line that an earlier run has written."""

    key: str
    """The key in `OutputFile.answered`."""
    id: str
    failed: bool
    """Whether the line has an error."""


class OutputFile:
    """JSON Lines in the format of OpenAI's batch output: `id`, `custom_id`, `response` and `error`.

    The file is locked against other runs. Its content changes only after `begin` is called.
    """

    beginning: ClassVar = b'{"id":"batch_req_'
    """The beginning of every line."""

    def __init__(self, path: Path, *, retry_failed: bool) -> None:
        """Open the file, and create it if it does not exist.

        `retry_failed`: treat lines with an error as unanswered. Raises BatchError.
        """
        self.path = path.resolve()
        self.answered: dict[str, str] = {}
        """The ids of answers, by custom_id, and of errors in the input, by their id. With `retry_failed`, without the failed lines."""
        self.failed = 0
        """The number of lines in `answered` that have an error."""
        self._name = path
        self._drops_failed = False
        self._complete_bytes = 0
        try:
            self._descriptor = self._open(self.path)
            try:
                self._read(retry_failed)
            except BaseException:
                os.close(self._descriptor)
                raise
        except OSError as error:
            raise BatchError(f"{path}: {error.strerror}") from error

    def __enter__(self) -> "OutputFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self._descriptor)

    def begin(self) -> None:
        """Remove an incomplete last line, and with `retry_failed` the failed lines. Raises BatchError."""
        try:
            os.ftruncate(self._descriptor, self._complete_bytes)
        except OSError as error:
            raise BatchError(f"{self._name}: {error.strerror}") from error
        if self._drops_failed:
            self.replace(self._without_failed())

    def append(self, line: RequestLine, entry: dict[str, Any]) -> None:
        """Write the answer to a line, or its error. Raises BatchError if it cannot be written completely.

        `entry`: as `RequestSender.send` returns it.
        """
        self.write(entry)

    def finish(self) -> None:
        """Complete the file, after all lines were sent. Raises BatchError."""

    def write(self, value: dict[str, Any]) -> None:
        """Write one line. Raises BatchError if it cannot be written completely."""
        line = orjson.dumps(value) + b"\n"
        try:
            complete = os.write(self._descriptor, line) == len(line)
        except OSError as error:
            raise BatchError(f"{self._name}: {error.strerror}. The same command goes on from here") from error
        if not complete:
            raise BatchError(f"{self._name}: there is no room for the next line. The same command goes on from here")

    def append_error(self, line: InvalidLine) -> None:
        """Write the error of an invalid line. Raises BatchError if it cannot be written completely."""
        self.write({"id": line.id, "custom_id": line.custom_id, "response": None, "error": {"code": line.code, "message": line.message}})

    def sync(self) -> None:
        """Write the appended lines to the disk, so that they survive a power failure. Raises BatchError."""
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise BatchError(f"{self._name}: {error.strerror}") from error

    def _open(self, path: Path) -> int:
        """Open and lock a file. Raises OSError, or BatchError if it is not a regular file or another run holds the lock."""
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise BatchError(f"{self._name} is not a file. A resumed batch reads its earlier output: name a file")
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not path.exists() or not os.path.samestat(os.fstat(descriptor), path.stat()):  # another run has just replaced the file
                raise BlockingIOError
        except BlockingIOError:
            os.close(descriptor)
            raise BatchError(f"{self._name}: another run writes to it") from None
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _read(self, retry_failed: bool) -> None:
        with self.path.open("rb") as file:
            for number, text in enumerate(file, 1):
                if not text.endswith(b"\n"):
                    if not (text.startswith(self.beginning) or self.beginning.startswith(text)):
                        raise self._foreign_line(number)
                    return
                written = self.parse(text)
                if written is None:
                    raise self._foreign_line(number)
                if written.failed and retry_failed:
                    self._drops_failed = True
                else:
                    self.answered[written.key] = written.id
                    self.failed += written.failed
                self._complete_bytes += len(text)

    def _foreign_line(self, number: int) -> BatchError:
        return BatchError(f"{self._name}, line {number}: this is not a line of batch output, and the file is left unchanged; name another")

    def replace(self, lines: Iterable[bytes]) -> None:
        """Write lines to a new file and rename it over the old file, so that a kill leaves one of the two complete. Raises BatchError."""
        temporary = self.path.with_name(f".{self.path.name}.new")
        try:
            descriptor = self._open(temporary)
            os.ftruncate(descriptor, 0)
            os.fchmod(descriptor, stat.S_IMODE(os.fstat(self._descriptor).st_mode))
            with os.fdopen(os.dup(descriptor), "wb") as new:
                new.writelines(lines)
            os.fsync(descriptor)
            temporary.replace(self.path)
        except OSError as error:
            raise BatchError(f"{self._name}: {error.strerror}") from error
        os.close(self._descriptor)
        self._descriptor = descriptor

    def parse(self, text: bytes) -> WrittenLine | None:
        """Return a line that an earlier run has written. None for any other line."""
        try:
            entry = orjson.loads(text)
        except orjson.JSONDecodeError:
            return None
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), str) or not isinstance(entry.get("custom_id"), str | None):
            return None
        if "error" not in entry or not isinstance(key := _key(entry), str):
            return None
        return WrittenLine(key, entry["id"], failed=bool(entry["error"]))

    def _without_failed(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            for text in file:
                written = self.parse(text)
                if written and not written.failed:
                    yield text


def _key(entry: dict[str, Any]) -> Any:
    """Return the entry's key in `OutputFile.answered`. An invalid line may have no custom_id, or the custom_id of another line."""
    error = entry["error"]
    return entry["id"] if isinstance(error, dict) and error.get("code") in INVALID_CODES else entry["custom_id"]
