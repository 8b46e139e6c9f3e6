"""Pictures of this machine in a request: the client reads them and sends their bytes, since no server reads files for its clients."""

from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from llava_gateway.cli.remote import image_part, local_path


class PictureError(Exception):
    """A file that cannot be read; the message names it as the request does."""


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
        return str(image_part(str(path))["image_url"]["url"])
    except OSError as error:
        raise PictureError(f"{source[:200]}: {error.strerror}") from error
    except ValueError as error:  # a zero byte in the path
        raise PictureError(f"{source[:200]}: {error}") from error
