"""Reading a request's body: bounded while it arrives, and JSON."""

from typing import Any

from starlette.datastructures import Headers
from starlette.types import Receive, Scope

from llava_gateway.errors import BodyTooLarge, InvalidRequest, UnsupportedMediaType
from llava_gateway.web.json import loads

JSON_TYPES = ("application/json", "text/json", "")


class ClientLeft(Exception):
    """The client closed the connection before its request was whole."""


async def read_json(scope: Scope, receive: Receive, max_bytes: int) -> dict[str, Any]:
    """The JSON object in the body. GatewayError for anything else; ClientLeft if the rest of it will not come."""
    headers = Headers(scope=scope)
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in JSON_TYPES and not media_type.endswith("+json"):
        raise UnsupportedMediaType(f"The body must be application/json, not {media_type}.")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType("The body must not be compressed.")
    value = loads(await _read(headers, receive, max_bytes))
    if not isinstance(value, dict):
        raise InvalidRequest("The body must be a JSON object.")
    return value


async def _read(headers: Headers, receive: Receive, max_bytes: int) -> bytes:
    declared = headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    chunks: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > max_bytes:
            raise _too_large(max_bytes)
        chunks.append(chunk)
        more = message.get("more_body", False)
    return b"".join(chunks)


def _too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"The body is larger than {max_bytes >> 20} MiB.")
