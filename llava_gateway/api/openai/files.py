"""`/v1/files`: pictures that are uploaded once, and named by their id in chats."""

from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from llava_gateway.api.base import json_response
from llava_gateway.errors import InvalidImage, InvalidRequest, NotFound
from llava_gateway.http.endpoints import FormEndpoint
from llava_gateway.http.form import Form
from llava_gateway.http.request_body import RequestBodyReader
from llava_gateway.http.response import ErrorRenderer, ResponseWriter
from llava_gateway.images.decode import extension
from llava_gateway.images.file_store import StoredFile
from llava_gateway.observability.context import current_context
from llava_gateway.serving.gateway import Gateway

PURPOSES = ("vision", "user_data")
MAX_FILENAME = 255
DAY = 86_400


def routes(prefix: str, gateway: Gateway, body_reader: RequestBodyReader, render_error: ErrorRenderer) -> list[BaseRoute]:
    """Return the routes below `prefix`."""
    files = Files(gateway)
    return [
        Route(f"{prefix}/files", FormEndpoint(files.create, render_error, gateway.admission, body_reader), methods=["POST"]),
        Route(f"{prefix}/files", files.list, methods=["GET"]),
        Route(f"{prefix}/files/{{id}}", files.get, methods=["GET"]),
        Route(f"{prefix}/files/{{id}}/content", files.content, methods=["GET"]),
        Route(f"{prefix}/files/{{id}}", files.delete, methods=["DELETE"]),
    ]


class Files:
    """The handlers of the endpoints. A file belongs to the API key that has uploaded it."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway, self._store = gateway, gateway.files

    async def create(self, form: Form, response: ResponseWriter) -> None:
        purpose, seconds = _purpose(form), _seconds(form)
        file = form.get("file")
        if file is None or file.filename is None:
            raise InvalidRequest("file is missing: send the image as a file of the form.", param="file")
        content = bytes(file.value)
        try:
            await self._gateway.check_image(content)
        except InvalidImage as error:
            raise InvalidImage(error.message, param="file", code=error.code) from error
        stored = await self._store.add(current_context().key_name, content, file.filename[:MAX_FILENAME], purpose, seconds)
        await response.json(200, _file_object(stored))

    async def list(self, request: Request) -> Response:
        query = request.query_params
        limit = _number(query.get("limit", "10000"), "limit", 1, 10_000)
        if query.get("order", "desc") not in ("asc", "desc"):
            raise InvalidRequest("order must be asc or desc.", param="order")
        files = [file for file in await self._store.list(current_context().key_name) if query.get("purpose") in (None, file.purpose)]
        if query.get("order") == "asc":
            files.reverse()
        if after := query.get("after"):
            ids = [file.id for file in files]
            if after not in ids:
                raise InvalidRequest(f"after names no file of this list: {after[:100]}", param="after")
            files = files[ids.index(after) + 1 :]
        page = files[:limit]
        data = [_file_object(file) for file in page]
        ends = {"first_id": page[0].id if page else None, "last_id": page[-1].id if page else None}
        return json_response({"object": "list", "data": data, **ends, "has_more": len(files) > limit})

    async def get(self, request: Request) -> Response:
        return json_response(_file_object(await self._found(request)))

    async def content(self, request: Request) -> Response:
        file = await self._found(request)
        content = await self._store.content(current_context().key_name, file.id)
        if content is None:
            raise _no_such_file(file.id)
        return Response(
            content, media_type=f"image/{extension(content).replace('jpg', 'jpeg')}", headers={"x-content-type-options": "nosniff"}
        )

    async def delete(self, request: Request) -> Response:
        file_id = request.path_params["id"]
        if not await self._store.delete(current_context().key_name, file_id):
            raise _no_such_file(file_id)
        return json_response({"id": file_id, "object": "file", "deleted": True})

    async def _found(self, request: Request) -> StoredFile:
        file_id = request.path_params["id"]
        file = await self._store.get(current_context().key_name, file_id)
        if file is None:
            raise _no_such_file(file_id)
        return file


def _no_such_file(file_id: str) -> NotFound:
    return NotFound(f"There is no file {file_id[:100]} of this API key, or it has expired.", param="id", code="file_not_found")


def _file_object(file: StoredFile) -> dict[str, Any]:
    return asdict(file) | {"object": "file", "status": "processed", "status_details": None}


def _purpose(form: Form) -> str:
    field = form.get("purpose")
    purpose = field.value.decode(errors="replace") if field else ""
    if purpose not in PURPOSES:
        raise InvalidRequest("purpose must be vision or user_data: the server stores only pictures for chats.", param="purpose")
    return purpose


def _seconds(form: Form) -> int | None:
    """Return the life of the file that the client asks for, in seconds. None: it asks for none."""
    anchor, seconds = form.get("expires_after[anchor]"), form.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return None
    if anchor is None or anchor.value != b"created_at":
        raise InvalidRequest("expires_after[anchor] must be created_at.", param="expires_after[anchor]")
    return _number(seconds.value.decode(errors="replace") if seconds else "", "expires_after[seconds]", 1, 30 * DAY)


def _number(text: str, param: str, least: int, most: int) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 9 and least <= int(text) <= most):
        raise InvalidRequest(f"{param} must be an integer from {least} to {most}.", param=param)
    return int(text)
