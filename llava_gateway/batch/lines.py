"""The requests of a batch: lines of a file in OpenAI's batch format, or one request for each image of a folder."""

import codecs
import glob
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import orjson
from blake3 import blake3
from pydantic import BaseModel, ConfigDict, Field, ValidationError

CHAT = "/v1/chat/completions"


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


class LineSource(Protocol):
    """An iterable of request lines. It can be iterated several times and does not keep the lines in memory."""

    name: str
    """The source's name in messages."""
    folder: Path
    """The folder that relative paths of images start from."""

    def __iter__(self) -> Iterator[RequestLine]:
        """Yield the lines. Raises BatchError at an invalid line."""


class _BatchRequestInput(BaseModel):
    """OpenAI's `BatchRequestInput`."""

    model_config = ConfigDict(strict=True)
    custom_id: str = Field(min_length=1)
    method: Literal["POST"] = "POST"
    url: Literal["/v1/chat/completions", "/v1/completions"]
    body: dict[str, Any]


class RequestFile:
    """A file of JSON Lines with `custom_id`, `method`, `url` and `body`. Blank lines are skipped, but count in line numbers."""

    def __init__(self, path: Path) -> None:
        """Check that `path` is not a pipe or a directory. Raises BatchError."""
        if str(path) == "-" or (path.exists() and not path.is_file()):
            raise BatchError(f"{path} is not a file. A batch is read twice, and once more when it is resumed: write it to a file first")
        self.name = str(path)
        self.folder = path.parent
        self._path = path

    def __iter__(self) -> Iterator[RequestLine]:
        try:
            with self._path.open("rb") as file:
                for number, text in enumerate(file, 1):
                    if text := text.removeprefix(codecs.BOM_UTF8).strip():
                        yield self._parse(number, text)
        except OSError as error:
            raise BatchError(f"{self.name}: {error.strerror}") from error

    def _parse(self, number: int, text: bytes) -> RequestLine:
        try:
            request = _BatchRequestInput.model_validate(orjson.loads(text))
            if request.body.get("stream"):
                raise BatchError(f"{self.name}, line {number}: body.stream: a batch's answers are not streamed; leave it out")
            return _request_line(number, request.custom_id, request.url, request.body)
        except orjson.JSONDecodeError as error:
            fault = f"not JSON: {error.msg}, at column {error.colno}"
        except orjson.JSONEncodeError as error:
            fault = f"body: {error}"
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            fault = ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
        raise BatchError(f"{self.name}, line {number}: {fault}")


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

    def __iter__(self) -> Iterator[RequestLine]:
        for number, path in enumerate(self._paths, 1):
            content = [{"type": "image_url", "image_url": {"url": path}}, {"type": "text", "text": self._prompt}]
            body = {"messages": [{"role": "user", "content": content}], **self._fields}
            try:
                yield _request_line(number, path, CHAT, body)
            except orjson.JSONEncodeError as error:
                raise BatchError(f"--images: the name {path!r} is not UTF-8; rename the file") from error


def count_lines(source: LineSource, answered: Mapping[str, str]) -> tuple[int, int]:
    """Return the number of lines, and the number of lines without an answer.

    `answered`: the ids of answers, by custom_id. Raises BatchError if a line is invalid, if two lines have the same custom_id, or if a
    line's answer belongs to another request.
    """
    numbers: dict[str, int] = {}
    for line in source:
        where = f"{source.name}, line {line.number}: custom_id {line.custom_id!r}"
        if (other := numbers.setdefault(line.custom_id, line.number)) != line.number:
            raise BatchError(f"{where} is that of line {other}, too")
        if answered.get(line.custom_id, line.id) != line.id:
            raise BatchError(f"{where} asked something else before; write to another file, or use --retry-failed if the old request failed")
    if not numbers:
        raise BatchError(f"{source.name} has no lines")
    return len(numbers), sum(custom_id not in answered for custom_id in numbers)


def _request_line(number: int, custom_id: str, url: str, body: dict[str, Any]) -> RequestLine:
    """Return the line with its id. Raises orjson.JSONEncodeError if the body cannot be sent as JSON."""
    content = orjson.dumps((url, body), option=orjson.OPT_SORT_KEYS)
    return RequestLine(number, custom_id, url, body, f"batch_req_{blake3(content).hexdigest(16)}")


def _matching_files(pattern: str) -> list[str]:
    """Return the files that match. Raises BatchError if no file matches.

    A file whose whole name equals the pattern comes first, since names may contain brackets.
    """
    expanded = Path(pattern).expanduser()
    paths = [str(expanded)] if expanded.is_file() else sorted(glob.glob(str(expanded), recursive=True))  # noqa: PTH207
    if files := [path for path in paths if Path(path).is_file()]:
        return files
    raise BatchError(f"--images: no file matches {pattern!r}")
