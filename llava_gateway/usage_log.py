"""Who used how much: a line of JSON for each request that reached the engine. A line is one write to a file opened for appending, so that
what is written survives the death of this process, and several may write to one file."""

import logging
import os
import time
from pathlib import Path

import orjson

from llava_gateway import metrics
from llava_gateway.call import Call

log = logging.getLogger(__name__)


class UsageLog:
    def __init__(self, path: Path) -> None:
        """Raises OSError if it cannot be written."""
        self.path = path
        self._file = self._open()
        self._failing = self._torn = False

    def write(self, call: Call, status: int, seconds: float) -> None:
        """A full disk costs lines, which the metrics count, and no answer."""
        usage = call.usage
        line = orjson.dumps(
            {
                "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "id": call.id,
                "key": call.caller.key.name if call.caller else None,
                "model": call.model,
                "status": status,
                "code": call.code,
                "seconds": round(seconds, 3),
                "text_tokens": usage.prompt_tokens - usage.image_tokens,
                "image_tokens": usage.image_tokens,
                "cached_tokens": usage.cached_tokens,
                "completion_tokens": usage.completion_tokens,
                "images": len(call.images),
            }
        )
        try:
            self._append(b"\n" * self._torn + line + b"\n")
        except OSError as error:
            metrics.USAGE_LOG_FAILURES.inc()
            if not self._failing:
                log.error("The usage log cannot be written: %s", error.strerror)
            self._failing = True
        else:
            self._failing = False

    def _append(self, line: bytes) -> None:
        self._follow()
        written = os.write(self._file, line)
        self._torn = written < len(line)
        if self._torn:  # the disk has filled up within the line; the next one begins on its own
            self._torn = os.write(self._file, line[written:]) < len(line) - written

    def _follow(self) -> None:
        """Begin a new file where the old one has been moved away, as logrotate does."""
        try:
            moved = not os.path.samestat(self.path.stat(), os.fstat(self._file))
        except FileNotFoundError:
            moved = True
        if moved:
            old, self._file = self._file, self._open()
            os.close(old)

    def _open(self) -> int:
        return os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
