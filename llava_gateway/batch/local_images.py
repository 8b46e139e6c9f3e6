"""Images of a request that are files on this machine: their bytes are put into the request as data URIs.

Only images are sent: the author of a batch file may name any file that the user who runs the batch can read.
"""

import base64
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from llava_gateway.client.remote import MAX_IMAGE_BYTES, local_path
from llava_gateway.files import read_file
from llava_gateway.images.decode import sniff

BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)
"""Valid lengths of a BMP's second header, in bytes. They are checked because the format's signature is only `BM`, and a text may begin
with these letters, too."""
MAX_NAME = 200
"""Characters of a file's name that error messages quote."""


class ImageFileError(Exception):
    """A file cannot be read or is not an image. The message names the file as the request does."""


def with_local_images(body: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Replace each image URL that is a path or a file:// URL by a data URI. Returns the same `body`, changed.

    `folder`: relative paths start from it. Parts that do not have OpenAI's shape are left unchanged, so that the server refuses them.
    Raises ImageFileError.
    """
    for message in _dicts(body.get("messages")):
        for part in _dicts(message.get("content")):
            _replace_paths(part, folder)
    if isinstance(body.get("images"), list):  # a field of /v1/completions
        body["images"] = [_url_to_send(image, folder) if isinstance(image, str) else image for image in body["images"]]
    return body


def _replace_paths(part: dict[str, Any], folder: Path) -> None:
    """Replace the path or file:// URL of an image part, in OpenAI's form or in that of Hugging Face. Raises ImageFileError."""
    image = part.get("image_url")
    if part.get("type") == "image":
        if isinstance(part.get("path"), str) and "url" not in part:
            part["url"] = part.pop("path")
        if isinstance(url := part.get("url"), str):
            part["url"] = _url_to_send(url, folder)
    elif isinstance(image, dict) and isinstance(image.get("url"), str):
        image["url"] = _url_to_send(image["url"], folder)
    elif isinstance(image, str):
        part["image_url"] = _url_to_send(image, folder)


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _url_to_send(source: str, folder: Path) -> str:
    """Return http(s) and data URLs unchanged, and the content of a local file as a data URI. Raises ImageFileError."""
    scheme = source.partition(":")[0].lower()
    if scheme in ("http", "https", "data"):
        return source
    name = source[:MAX_NAME]
    try:
        url = urlsplit(source) if scheme == "file" else None
        if url and url.netloc not in ("", "localhost"):
            raise ImageFileError(f"{name}: a file:// URL has three slashes and an absolute path, for example file:///photos/cat.jpg")
        path = folder / local_path(unquote(url.path) if url else source)
        data = read_file(path, MAX_IMAGE_BYTES)
    except OSError as error:
        raise ImageFileError(f"{name}: {error.strerror}") from error
    except ValueError as error:  # the path contains a zero byte
        raise ImageFileError(f"{name}: {error}") from error
    if (image_format := _image_format(data)) is None:
        raise ImageFileError(f"{name}: This is no picture of a known format, and nothing else is sent")
    return f"data:image/{image_format.lower()};base64,{base64.b64encode(data).decode()}"


def _image_format(data: bytes) -> str | None:
    """Return the format's name from the file's first bytes. None: not an image."""
    image_format = sniff(data)
    return None if image_format == "BMP" and int.from_bytes(data[14:18], "little") not in BMP_HEADERS else image_format
