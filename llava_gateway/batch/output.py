"""What is known: a file of answers that only grows, one line in one write, so that whatever ends a run, the next goes on from it."""

import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import orjson

from llava_gateway.batch.lines import BatchError

BEGINNING = b'{"id":"batch_req_'
"""Of every line that `append` writes."""


class Output:
    """JSON Lines in the shape of OpenAI's batch output: `id`, `custom_id`, `response` and `error`. Nobody else may write to the file
    meanwhile. What it holds changes only once `begin` is called."""

    def __init__(self, path: Path, *, retry_failed: bool) -> None:
        """Makes the file if there is none. `retry_failed`: lines with an error are to be asked anew. Raises BatchError."""
        self.path = path.resolve()
        self.answered: dict[str, str] = {}
        """The ids of answers, by custom_id; those that are to be asked anew are not among them."""
        self.failed = 0
        """How many of them have an error."""
        self._name = path
        self._drops = False
        self._whole = 0
        try:
            self._descriptor = self._open(self.path)
            try:
                self._read(retry_failed)
            except BaseException:
                os.close(self._descriptor)
                raise
        except OSError as error:
            raise BatchError(f"{path}: {error.strerror}") from error

    def __enter__(self) -> "Output":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self._descriptor)

    def begin(self) -> None:
        """Cut off a last line that was not written to its end, and take out what is to be asked anew. Raises BatchError."""
        try:
            os.ftruncate(self._descriptor, self._whole)
            if self._drops:
                self._drop_failed()
        except OSError as error:
            raise BatchError(f"{self._name}: {error.strerror}") from error

    def append(self, entry: dict[str, Any]) -> None:
        """Raises BatchError."""
        line = orjson.dumps(entry) + b"\n"
        try:
            complete = os.write(self._descriptor, line) == len(line)
        except OSError as error:
            raise BatchError(f"{self._name}: {error.strerror}. The same command goes on from here") from error
        if not complete:
            raise BatchError(f"{self._name}: there is no room for the next line. The same command goes on from here")

    def sync(self) -> None:
        """See to it that a power failure loses nothing of what was appended. Raises BatchError."""
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise BatchError(f"{self._name}: {error.strerror}") from error

    def _open(self, path: Path) -> int:
        """Held against other runs. Raises OSError and BatchError."""
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise BatchError(f"{self._name} is not a file. A batch goes on from what it has written: name a file")
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not path.exists() or not os.path.samestat(os.fstat(descriptor), path.stat()):  # another run has just put a new file there
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
                    if not (text.startswith(BEGINNING) or BEGINNING.startswith(text)):
                        raise self._foreign(number)
                    return
                entry = _entry(text)
                if entry is None:
                    raise self._foreign(number)
                if entry["error"] and retry_failed:
                    self._drops = True
                else:
                    self.answered[entry["custom_id"]] = entry["id"]
                    self.failed += bool(entry["error"])
                self._whole += len(text)

    def _foreign(self, number: int) -> BatchError:
        return BatchError(f"{self._name}, line {number}: this is no answer of a batch, and nothing is written to such a file; name another")

    def _drop_failed(self) -> None:
        """In a new file that takes this one's place, so that a kill leaves the one or the other."""
        temporary = self.path.with_name(f".{self.path.name}.new")
        descriptor = self._open(temporary)
        os.ftruncate(descriptor, 0)
        os.fchmod(descriptor, stat.S_IMODE(os.fstat(self._descriptor).st_mode))
        with self.path.open("rb") as old, os.fdopen(os.dup(descriptor), "wb") as new:
            new.writelines(_without_failed(old))
        os.fsync(descriptor)
        temporary.replace(self.path)
        os.close(self._descriptor)
        self._descriptor = descriptor


def _entry(text: bytes) -> dict[str, Any] | None:
    """The line, if it is one that `append` has written."""
    try:
        entry = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(entry, dict) or not isinstance(entry.get("custom_id"), str) or not isinstance(entry.get("id"), str):
        return None
    return entry if "error" in entry else None


def _without_failed(file: BinaryIO) -> Iterator[bytes]:
    for text in file:
        entry = _entry(text)
        if entry and not entry["error"]:
            yield text
