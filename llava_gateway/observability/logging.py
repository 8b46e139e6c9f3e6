"""How lines of the log look: text for people, or JSON for machines. A record's `fields` come after its message."""

import logging
import sys
import time
from typing import TextIO

import orjson

from llava_gateway.settings import Settings


def set_up(settings: Settings, stream: TextIO | None = None) -> None:
    """For a process of ours. `stream`: where lines go, if not to sys.stderr. What no line shows is not looked for (Python's logging HOWTO,
    "Optimization")."""
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else TextFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("llava_gateway").setLevel(settings.log_level.upper())
    logging.getLogger("vllm").setLevel(logging.ERROR)  # it follows VLLM_LOGGING_LEVEL once it is imported


class TextFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        fields: dict[str, object] = getattr(record, "fields", {})
        return super().formatMessage(record) + "".join(f" {name}={_text(value)}" for name, value in fields.items())


class JsonFormatter(logging.Formatter):
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
    if isinstance(value, dict):
        return ",".join(f"{name}:{number}" for name, number in value.items())
    return ",".join(map(str, value)).replace(" ", ":") if isinstance(value, list) else str(value)
