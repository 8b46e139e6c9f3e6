"""Helpers of the commands that call a server: its base URL, an HTTP client, and images as parts of a message."""

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
"""The largest image file that is sent. Servers accept less."""
DEFAULT_URL = "http://127.0.0.1:8000/v1"


def base_url(url: str) -> str:
    """Return the URL of the API, like the `base_url` of an SDK. `url`: with or without /v1."""
    url = url.rstrip("/")
    return url if "/v1" in url else f"{url}/v1"


def url_option(value: str) -> str:
    """Return an option's value as the URL of an API. Raises ArgumentTypeError."""
    try:
        parts = urlsplit(value)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and value.isprintable()
    except ValueError:  # the port is not a number, or too large
        usable = False
    if not usable:
        raise argparse.ArgumentTypeError(f"{value!r} is not a URL such as {DEFAULT_URL}")
    return base_url(value)


def key_option(value: str) -> str:
    """Return an option's value as an API key. Raises ArgumentTypeError."""
    if not (value.isascii() and value.isprintable()):
        raise argparse.ArgumentTypeError("an API key consists of printable ASCII characters")
    return value


def http_client(
    url: str, key: str, timeout: httpx.Timeout, tls: ssl.SSLContext | None = None, *, proxies: bool = True
) -> httpx.AsyncClient:
    """Return a client of the API at `url`. Its request paths are relative to the API.

    `key`: sent as a bearer token; empty: none. `tls`: a context that several clients share, since making one takes about 20 ms.
    `proxies`: whether the proxies of the environment are used. Raises OSError if the environment names a proxy that cannot be used.
    """
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        return httpx.AsyncClient(base_url=f"{base_url(url)}/", headers=headers, timeout=timeout, verify=tls or True, trust_env=proxies)
    except (ImportError, ValueError, httpx.InvalidURL) as error:  # of a SOCKS proxy, an unknown scheme, an invalid URL
        raise OSError(0, f"the proxy in the environment (ALL_PROXY, HTTP_PROXY, HTTPS_PROXY) cannot be used: {error}") from error


def image_part(source: str) -> dict[str, Any]:
    """Return an image as a part of a message.

    `source`: an http(s) or data URL, which is sent unchanged, or the path of a file on this machine. Raises OSError.
    """
    if source.partition(":")[0].lower() in ("http", "https", "data"):
        url = source
    else:
        path = local_path(source)
        media_type = mimetypes.guess_type(path.name)[0] or "image/jpeg"  # this gateway ignores the type, but other servers use it
        url = f"data:{media_type};base64,{base64.b64encode(read_file(path, MAX_IMAGE_BYTES)).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def local_path(name: str) -> Path:
    """Return the path of a file on this machine, with `~` expanded. Raises FileNotFoundError if the user after `~` does not exist."""
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise FileNotFoundError(errno.ENOENT, str(error), name) from error
