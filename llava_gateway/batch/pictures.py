"""Pictures of this machine in a request: the client reads them and sends their bytes, since no server reads files for its clients. It sends
nothing but pictures: whoever wrote the requests may have named any file."""

import base64
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from llava_gateway.cli.remote import MAX_PICTURE_BYTES, local_path
from llava_gateway.files import read_file
from llava_gateway.images.decode import sniff

BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)
"""Lengths of a BMP's second header. The format's own mark is `BM` alone, with which a text may begin, too."""


class PictureError(Exception):
    """A file that cannot be read, or is no picture; the message names it as the request does."""


def with_pictures(body: dict[str, Any], folder: Path) -> dict[str, Any]:
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
            raise PictureError(f"{source[:200]}: a file:// URL has three slashes and a whole path, as file:///photos/cat.jpg")
        path = folder / local_path(unquote(url.path) if url else source)
        data = read_file(path, MAX_PICTURE_BYTES)
    except OSError as error:
        raise PictureError(f"{source[:200]}: {error.strerror}") from error
    except ValueError as error:  # a zero byte in the path
        raise PictureError(f"{source[:200]}: {error}") from error
    if (picture_format := _format(data)) is None:
        raise PictureError(f"{source[:200]}: This is no picture of a known format, and nothing else is sent")
    return f"data:image/{picture_format.lower()};base64,{base64.b64encode(data).decode()}"


def _format(data: bytes) -> str | None:
    found = sniff(data)
    return None if found == "BMP" and int.from_bytes(data[14:18], "little") not in BMP_HEADERS else found
