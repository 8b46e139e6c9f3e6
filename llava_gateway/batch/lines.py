"""What is asked: the lines of a file in OpenAI's batch format, or one for each picture of a folder."""

import base64
import codecs
import glob
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import unquote, urlsplit

import orjson
from blake3 import blake3
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llava_gateway.client.remote import MAX_IMAGE_BYTES, local_path
from llava_gateway.files import read_file
from llava_gateway.images.decode import sniff

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


class BatchError(Exception):
    """Why there is no batch, or why it does not go on: one line for the user."""


@dataclass(frozen=True, slots=True)
class Line:
    """One request."""

    number: int
    """In its source, from 1."""
    custom_id: str
    url: str
    body: dict[str, Any]
    id: str
    """Of its answer. Made of what is asked, so that an answer to another question under the same custom_id is known for that."""


class Source(Protocol):
    """Lines that can be gone through again and again, without being held."""

    name: str
    """For messages."""
    folder: Path
    """What relative paths of pictures start from."""

    def __iter__(self) -> Iterator[Line]:
        """Raises BatchError at a line that is wrong."""


class _Request(BaseModel):
    """OpenAI's `BatchRequestInput`."""

    model_config = ConfigDict(strict=True)
    custom_id: str = Field(min_length=1)
    method: Literal["POST"] = "POST"
    url: Literal["/v1/chat/completions", "/v1/completions"]
    body: dict[str, Any]


class RequestFile:
    """JSON Lines of `custom_id`, `method`, `url` and `body`. Blank lines count, and say nothing."""

    def __init__(self, path: Path) -> None:
        """Raises BatchError."""
        if str(path) == "-" or (path.exists() and not path.is_file()):
            raise BatchError(f"{path} is not a file. A batch is read twice, and once more when it is resumed: write it to a file first")
        self.name = str(path)
        self.folder = path.parent
        self._path = path

    def __iter__(self) -> Iterator[Line]:
        try:
            with self._path.open("rb") as file:
                for number, text in enumerate(file, 1):
                    if text := text.removeprefix(codecs.BOM_UTF8).strip():
                        yield self._line(number, text)
        except OSError as error:
            raise BatchError(f"{self.name}: {error.strerror}") from error

    def _line(self, number: int, text: bytes) -> Line:
        try:
            request = _Request.model_validate(orjson.loads(text))
            if request.body.get("stream"):
                raise BatchError(f"{self.name}, line {number}: body.stream: a batch's answers are not streamed; leave it out")
            return _line(number, request.custom_id, request.url, request.body)
        except orjson.JSONDecodeError as error:
            fault = f"not JSON: {error.msg}, at column {error.colno}"
        except orjson.JSONEncodeError as error:
            fault = f"body: {error}"
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            fault = ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
        raise BatchError(f"{self.name}, line {number}: {fault}")


class ImageFiles:
    """The same question about each picture, whose path is the custom_id."""

    def __init__(self, patterns: Sequence[str], prompt: str, fields: Mapping[str, Any]) -> None:
        """`patterns`: paths, with `*`, `?`, `[...]` and `**`; `fields` go into every body. Raises BatchError."""
        self.name = "--images"
        self.folder = Path()
        self._prompt, self._fields = prompt, fields
        self._paths = list(dict.fromkeys(path for pattern in patterns for path in _files(pattern)))

    def __iter__(self) -> Iterator[Line]:
        for number, path in enumerate(self._paths, 1):
            content = [{"type": "image_url", "image_url": {"url": path}}, {"type": "text", "text": self._prompt}]
            body = {"messages": [{"role": "user", "content": content}], **self._fields}
            try:
                yield _line(number, path, CHAT, body)
            except orjson.JSONEncodeError as error:
                raise BatchError(f"--images: the name {path!r} is not UTF-8; rename the file") from error


def count(source: Source, answered: Mapping[str, str]) -> tuple[int, int]:
    """How many lines there are, and how many of them are not in `answered`, which has the ids of answers by custom_id. Raises BatchError if
    a line is wrong, has the custom_id of another, or asks what its answer does not answer."""
    numbers: dict[str, int] = {}
    for line in source:
        where = f"{source.name}, line {line.number}: custom_id {line.custom_id!r}"
        if (other := numbers.setdefault(line.custom_id, line.number)) != line.number:
            raise BatchError(f"{where} is that of line {other}, too")
        if answered.get(line.custom_id, line.id) != line.id:
            raise BatchError(f"{where} asked something else before; write to another file, or --retry-failed if it had failed")
    if not numbers:
        raise BatchError(f"{source.name} has no lines")
    return len(numbers), sum(custom_id not in answered for custom_id in numbers)


def _line(number: int, custom_id: str, url: str, body: dict[str, Any]) -> Line:
    """Raises orjson.JSONEncodeError if the body cannot be sent."""
    asked = orjson.dumps((url, body), option=orjson.OPT_SORT_KEYS)
    return Line(number, custom_id, url, body, f"batch_req_{blake3(asked).hexdigest(16)}")


def _files(pattern: str) -> list[str]:
    """A file of that very name first, since its name may have brackets. Raises BatchError if there is none."""
    expanded = Path(pattern).expanduser()
    paths = [str(expanded)] if expanded.is_file() else sorted(glob.glob(str(expanded), recursive=True))  # noqa: PTH207
    if files := [path for path in paths if Path(path).is_file()]:
        return files
    raise BatchError(f"--images: no file matches {pattern!r}")


BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)
"""Lengths of a BMP's second header. The format's own mark is `BM` alone, with which a text may begin, too."""


class ImageFileError(Exception):
    """A file that cannot be read, or is no picture; the message names it as the request does."""


def with_local_images(body: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The body, in which each image URL that is a path or a file:// URL has become a data URI. Paths start from `folder`. What is not in
    OpenAI's shape is left for the server to refuse. Raises PictureError."""
    for message in _dicts(body.get("messages")):
        for part in _dicts(message.get("content")):
            image = part.get("image_url")
            if part.get("type") == "image_url" and isinstance(image, dict) and isinstance(image.get("url"), str):
                image["url"] = _sent(image["url"], folder)
    if isinstance(body.get("images"), list):  # of plain completions
        body["images"] = [_sent(image, folder) if isinstance(image, str) else image for image in body["images"]]
    return body


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _sent(source: str, folder: Path) -> str:
    """The URL to send: what it is, or the picture itself."""
    scheme = source.partition(":")[0].lower()
    if scheme in ("http", "https", "data"):
        return source
    try:
        url = urlsplit(source) if scheme == "file" else None
        if url and url.netloc not in ("", "localhost"):
            raise ImageFileError(f"{source[:200]}: a file:// URL has three slashes and a whole path, as file:///photos/cat.jpg")
        path = folder / local_path(unquote(url.path) if url else source)
        data = read_file(path, MAX_IMAGE_BYTES)
    except OSError as error:
        raise ImageFileError(f"{source[:200]}: {error.strerror}") from error
    except ValueError as error:  # a zero byte in the path
        raise ImageFileError(f"{source[:200]}: {error}") from error
    if (image_format := _image_format(data)) is None:
        raise ImageFileError(f"{source[:200]}: This is no picture of a known format, and nothing else is sent")
    return f"data:image/{image_format.lower()};base64,{base64.b64encode(data).decode()}"


def _image_format(data: bytes) -> str | None:
    found = sniff(data)
    return None if found == "BMP" and int.from_bytes(data[14:18], "little") not in BMP_HEADERS else found
