"""The requests of a batch: lines of a file in OpenAI's batch format, or one request for each image of a folder."""

import codecs
import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import orjson
from blake3 import blake3
from pydantic import BaseModel, ConfigDict, Field, ValidationError

CHAT = "/v1/chat/completions"
INVALID_CODES = (INVALID_JSON, INVALID_REQUEST, DUPLICATE) = ("invalid_json_line", "invalid_request_line", "duplicate_custom_id")
"""The codes of errors in the input. OpenAI uses the first and the last one, too."""


class BatchError(Exception):
    """The reason why a batch cannot start or cannot go on, as one line for the user."""


@dataclass(frozen=True, slots=True)
class RequestLine:
    """One request of a batch."""

    number: int
    """The line's number in its source, from 1."""
    custom_id: str
    url: str
    """The endpoint: /v1/chat/completions or /v1/completions."""
    body: dict[str, Any]
    id: str
    """The id of the answer: a digest of the request. If the request under a custom_id changes, its old answer no longer matches."""


@dataclass(frozen=True, slots=True)
class InvalidLine:
    """A line that is not a request. It gets an error in the output, and the other lines are sent."""

    id: str
    """The id of the error: a digest of the line and its number."""
    custom_id: str | None
    """None: the line has no valid custom_id."""
    code: str
    """One of INVALID_CODES."""
    message: str
    """The reason, with the line's number."""


class LineSource(Protocol):
    """An iterable of lines. It can be iterated several times and does not keep the lines in memory."""

    name: str
    """The source's name in messages."""
    folder: Path
    """The folder that relative paths of images start from."""

    def __iter__(self) -> Iterator[RequestLine | InvalidLine]:
        """Yield the lines. The custom_ids of RequestLines are unique. Raises BatchError if the source cannot be read."""


class _BatchRequestInput(BaseModel):
    """OpenAI's `BatchRequestInput`."""

    model_config = ConfigDict(strict=True)
    custom_id: str = Field(min_length=1)
    method: Literal["POST"] = "POST"
    url: Literal["/v1/chat/completions", "/v1/completions"]
    body: dict[str, Any]


class _InvalidRequest(Exception):
    """A line is not a request. The message names the field."""


class RequestFile:
    """A file of JSON Lines with `custom_id`, `method`, `url` and `body`. Blank lines are skipped, but count in line numbers."""

    def __init__(self, path: Path) -> None:
        """Check that `path` is not a pipe or a directory. Raises BatchError."""
        if str(path) == "-" or (path.exists() and not path.is_file()):
            raise BatchError(f"{path} is not a file. A batch is read twice, and once more when it is resumed: write it to a file first")
        self.name = str(path)
        self.folder = path.parent
        self._path = path

    def __iter__(self) -> Iterator[RequestLine | InvalidLine]:
        numbers: dict[str, int] = {}
        try:
            with self._path.open("rb") as file:
                for number, text in enumerate(file, 1):
                    if text := text.removeprefix(codecs.BOM_UTF8).strip():
                        line = self._parse(number, text)
                        if isinstance(line, RequestLine) and (first := numbers.setdefault(line.custom_id, number)) != number:
                            line = _invalid_line(number, text, line.custom_id, DUPLICATE, f"the custom_id is that of line {first}, too")
                        yield line
        except OSError as error:
            raise BatchError(f"{self.name}: {error.strerror}") from error

    def request(self, number: int, value: Any) -> RequestLine:
        """Return the request of a line's JSON. Raises pydantic's ValidationError, orjson.JSONEncodeError and _InvalidRequest."""
        request = _BatchRequestInput.model_validate(value)
        if request.body.get("stream"):
            raise _InvalidRequest("body.stream: a batch's answers are not streamed; leave it out")
        return _request_line(number, request.custom_id, request.url, request.body)

    def _parse(self, number: int, text: bytes) -> RequestLine | InvalidLine:
        value: Any = None
        code = INVALID_REQUEST
        try:
            value = orjson.loads(text)
            return self.request(number, value)
        except orjson.JSONDecodeError as error:
            code, fault = INVALID_JSON, f"not JSON: {error.msg}, at column {error.colno}"
        except orjson.JSONEncodeError as error:
            fault = f"body: {error}"
        except _InvalidRequest as error:
            fault = str(error)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            fault = ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
        custom_id = value.get("custom_id") if isinstance(value, dict) else None
        return _invalid_line(number, text, custom_id if isinstance(custom_id, str) else None, code, fault)


class ImageFiles:
    """One request for each image file, all with the same prompt. An image's path is the custom_id of its request."""

    def __init__(self, patterns: Sequence[str], prompt: str, fields: Mapping[str, Any]) -> None:
        """Find the files.

        `patterns`: paths, with `*`, `?`, `[...]` and `**`. `fields`: added to every body. Raises BatchError if a pattern matches no file.
        """
        self.name = "--images"
        self.folder = Path()
        self._prompt, self._fields = prompt, fields
        self._paths = list(dict.fromkeys(path for pattern in patterns for path in _matching_files(pattern)))

    def __iter__(self) -> Iterator[RequestLine | InvalidLine]:
        for number, path in enumerate(self._paths, 1):
            content = [{"type": "image_url", "image_url": {"url": path}}, {"type": "text", "text": self._prompt}]
            body = {"messages": [{"role": "user", "content": content}], **self._fields}
            try:
                yield _request_line(number, path, CHAT, body)
            except orjson.JSONEncodeError:
                yield _invalid_line(number, os.fsencode(path), None, INVALID_REQUEST, f"the name {path!r} is not UTF-8; rename the file")


@dataclass
class LineCounts:
    """The lines of a source."""

    total: int = 0
    unanswered: int = 0
    """Requests that have no answer and no error in the output."""
    invalid: list[InvalidLine] = field(default_factory=list)
    """Invalid lines that have no error in the output."""


def count_lines(source: LineSource, answered: Mapping[str, str]) -> LineCounts:
    """Count the lines of a source.

    `answered`: as in `OutputFile`. Raises BatchError if a line's answer belongs to another request, or if the source cannot be read.
    """
    counts = LineCounts()
    for line in source:
        counts.total += 1
        if isinstance(line, InvalidLine):
            if line.id not in answered:
                counts.invalid.append(line)
        elif line.custom_id not in answered:
            counts.unanswered += 1
        elif answered[line.custom_id] != line.id:
            raise BatchError(
                f"{source.name}, line {line.number}: {line.custom_id!r} asked something else before; write to another file, or "
                "use --retry-failed if the old request failed"
            )
    return counts


def _invalid_line(number: int, text: bytes, custom_id: str | None, code: str, fault: str) -> InvalidLine:
    text_digest = blake3(b"%d %b" % (number, text)).hexdigest(16)
    return InvalidLine(f"batch_req_{text_digest}", custom_id, code, f"line {number}: {fault}")


def digest(url: str, body: dict[str, Any]) -> str:
    """Return a digest of a request, 32 hexadecimal digits. Raises orjson.JSONEncodeError if the body cannot be sent as JSON."""
    return blake3(orjson.dumps((url, body), option=orjson.OPT_SORT_KEYS)).hexdigest(16)


def _request_line(number: int, custom_id: str, url: str, body: dict[str, Any]) -> RequestLine:
    """Return the line with its id. Raises orjson.JSONEncodeError."""
    return RequestLine(number, custom_id, url, body, f"batch_req_{digest(url, body)}")


def _matching_files(pattern: str) -> list[str]:
    """Return the files that match. Raises BatchError if no file matches.

    A file whose whole name equals the pattern comes first, since names may contain brackets.
    """
    expanded = Path(pattern).expanduser()
    paths = [str(expanded)] if expanded.is_file() else sorted(glob.glob(str(expanded), recursive=True))  # noqa: PTH207
    if files := [path for path in paths if Path(path).is_file()]:
        return files
    raise BatchError(f"--images: no file matches {pattern!r}")
