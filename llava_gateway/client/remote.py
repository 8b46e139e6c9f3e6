"""What the commands that talk to a server share: where it is, and how a picture is put into a message."""

import argparse
import base64
import errno
import mimetypes
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from llava_gateway.files import read_file

MAX_IMAGE_BYTES = 64 << 20
"""Of a file that is sent; servers take less."""
DEFAULT_URL = "http://127.0.0.1:8000/v1"


def base_url(given: str) -> str:
    """The API's address, as an SDK's base_url, of an address with or without /v1."""
    address = given.rstrip("/")
    return address if "/v1" in address else f"{address}/v1"


def url_option(given: str) -> str:
    """The address of an API as an option's value. Raises ArgumentTypeError."""
    try:
        parts = urlsplit(given)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and given.isprintable()
    except ValueError:  # of a port that is no number, or too large
        usable = False
    if not usable:
        raise argparse.ArgumentTypeError(f"{given!r} is not an address such as {DEFAULT_URL}")
    return base_url(given)


def key_option(given: str) -> str:
    """A key as an option's value. Raises ArgumentTypeError."""
    if not (given.isascii() and given.isprintable()):
        raise argparse.ArgumentTypeError("a key is of printable ASCII characters")
    return given


def http_client(url: str, key: str, timeout: httpx.Timeout, tls: ssl.SSLContext | None = None) -> httpx.AsyncClient:
    """A client of the API at `url`; paths are relative to it. `tls` is made unless it is given, which takes some 20 ms."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return httpx.AsyncClient(base_url=f"{base_url(url)}/", headers=headers, timeout=timeout, verify=tls or True)


def image_part(source: str) -> dict[str, Any]:
    """A part of a message: an http(s) or data URL as it is, anything else as a file of this machine. Raises OSError."""
    if source.partition(":")[0].lower() in ("http", "https", "data"):
        url = source
    else:
        path = local_path(source)
        media_type = mimetypes.guess_type(path.name)[0] or "image/jpeg"  # which this gateway does not believe, but others do
        url = f"data:{media_type};base64,{base64.b64encode(read_file(path, MAX_IMAGE_BYTES)).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def local_path(name: str) -> Path:
    """A file of this machine; `~` stands for a home directory. Raises FileNotFoundError if nobody has that home."""
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise FileNotFoundError(errno.ENOENT, str(error), name) from error
