"""The format of log lines: text for people, or JSON for machines.

A log call may have fields, with `extra={"fields": {...}}`. They follow the message.
"""

import logging
import sys
import time
from typing import TextIO

import orjson

from llava_gateway.settings import Settings


def set_up(settings: Settings, stream: TextIO | None = None) -> None:
    """Set up logging in a process of the gateway, with the settings `log_level` and `log_format`.

    `stream`: the destination; default: sys.stderr. Facts that no line shows are not collected (Python's logging HOWTO, "Optimization").
    """
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else TextFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("llava_gateway").setLevel(settings.log_level.upper())
    logging.getLogger("vllm").setLevel(logging.ERROR)  # vLLM sets its level from VLLM_LOGGING_LEVEL when it is imported


class TextFormatter(logging.Formatter):
    """Formats a record as a line of text, with fields as `name=value`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        fields: dict[str, object] = getattr(record, "fields", {})
        return super().formatMessage(record) + "".join(f" {name}={_text(value)}" for name, value in fields.items())


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object, with fields beside `time`, `level`, `logger` and `message`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


def _text(value: object) -> str:
    """Return a field's value without spaces."""
    if isinstance(value, dict):
        return ",".join(f"{name}:{number}" for name, number in value.items())
    return ",".join(map(str, value)).replace(" ", ":") if isinstance(value, list) else str(value)
