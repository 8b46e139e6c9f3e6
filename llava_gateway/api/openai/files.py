"""`/v1/files`: pictures that clients upload once and name by `file_id` in their chats, in OpenAI's shapes."""

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from llava_gateway.api.base import json_response
from llava_gateway.api.openai.paging import Paging, integer
from llava_gateway.api.operation import ARRAY, BOOLEAN, INTEGER, STRING, Operation, Schema, object_schema
from llava_gateway.errors import InvalidRequest, NotFound
from llava_gateway.http.endpoints import FormEndpoint
from llava_gateway.http.form import Form
from llava_gateway.http.request_body import RequestBodyReader
from llava_gateway.http.response import ErrorRenderer, ResponseWriter
from llava_gateway.observability.context import current_context
from llava_gateway.serving.gateway import Gateway
from llava_gateway.storage.file_store import StoredFile

PURPOSES = ("vision", "user_data")
MAX_LIMIT = 10_000
"""OpenAI's upper bound of files on one page, and its default."""
MIN_SECONDS, MAX_SECONDS = 3600, 2_592_000
"""OpenAI's bounds of `expires_after[seconds]`."""
MAX_FILENAME = 255
SLICE = 500
"""The number of files that are described at once. Other requests are served between two slices."""


def file_routes(prefix: str, gateway: Gateway, body_reader: RequestBodyReader, render_error: ErrorRenderer) -> list[BaseRoute]:
    """Return the routes below `prefix`, such as `/v1`."""
    handlers = FileHandlers(gateway)
    upload = FormEndpoint(handlers.create, render_error, gateway.admission, body_reader)
    return [
        Route(f"{prefix}/files", upload, methods=["POST"]),
        Route(f"{prefix}/files", handlers.list, methods=["GET"]),
        Route(f"{prefix}/files/{{file_id}}", handlers.retrieve, methods=["GET"]),
        Route(f"{prefix}/files/{{file_id}}", handlers.delete, methods=["DELETE"]),
        Route(f"{prefix}/files/{{file_id}}/content", handlers.content, methods=["GET"]),
    ]


def file_operations(prefix: str) -> tuple[Operation, ...]:
    """Return the descriptions of the endpoints below a prefix."""
    file = object_schema(id=STRING, object={"const": "file"}, bytes=INTEGER, created_at=INTEGER, filename=STRING, purpose=STRING)
    form: dict[str, Schema] = {"file": {"type": "string", "format": "binary"}, "purpose": {"enum": list(PURPOSES)}}
    path, unknown = f"{prefix}/files/{{file_id}}", {404: "This API key has no such file"}
    limit: Schema = {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT}
    page: dict[str, Schema] = {"limit": limit, "order": {"enum": ["asc", "desc"]}, "after": STRING, "purpose": STRING}
    return (
        Operation("POST", f"{prefix}/files", "Upload a picture", object_schema(**form), file, body_media_type="multipart/form-data"),
        Operation(
            "GET",
            f"{prefix}/files",
            "List the uploaded files",
            answer=object_schema(object={"const": "list"}, data=ARRAY, has_more=BOOLEAN),
            parameters=page,
            errors={400: "A parameter is wrong, and `error.param` names it"},
        ),
        Operation("GET", path, "Describe one file", answer=file, errors=unknown),
        Operation("DELETE", path, "Delete a file", answer=object_schema(id=STRING, deleted={"const": True}), errors=unknown),
        Operation("GET", f"{path}/content", "Return the bytes of a file", other_answers={"image/*": "The file"}, errors=unknown),
    )


class FileHandlers:
    """The handlers of the endpoints. A key sees its own files only."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._files = gateway.files

    async def create(self, form: Form, response: ResponseWriter) -> None:
        purpose = _value(form, "purpose") or ""
        if purpose not in PURPOSES:
            raise InvalidRequest(f"purpose must be {' or '.join(PURPOSES)}: the server keeps pictures only.", param="purpose")
        ttl = _ttl(form)
        if (file := form.get("file")) is None or file.filename is None:
            raise InvalidRequest("file is missing. It must be a picture, sent as a file of the form.", param="file")
        media_type = await self._gateway.check_image_file(file.data, param="file")
        filename = file.filename[:MAX_FILENAME] or "file"
        stored = await self._files.create(current_context().key_name, file.data, filename, purpose, media_type, ttl)
        await response.json(200, _file_object(stored))

    async def list(self, request: Request) -> Response:
        query = request.query_params
        paging = Paging.read(query, default_limit=MAX_LIMIT, max_limit=MAX_LIMIT)
        owner = current_context().key_name
        file_ids = [*await self._files.list(owner)]
        if paging.oldest_first:
            file_ids.reverse()
        page: list[StoredFile] = []
        for start in range(paging.start(file_ids), len(file_ids), SLICE):
            found = await self._files.find_many(owner, file_ids[start : start + SLICE])
            page += [file for file in found if file and query.get("purpose") in (None, "", file.purpose)]
            if len(page) > paging.limit:
                break
            await asyncio.sleep(0)
        data = [_file_object(file) for file in page[: paging.limit]]
        ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
        return json_response({"object": "list", "data": data, **ends, "has_more": len(page) > paging.limit})

    async def retrieve(self, request: Request) -> Response:
        return json_response(_file_object(await self._find(request)))

    async def delete(self, request: Request) -> Response:
        file_id = request.path_params["file_id"]
        if not await self._files.delete(current_context().key_name, file_id):
            raise _not_found()
        return json_response({"id": file_id, "object": "file", "deleted": True})

    async def content(self, request: Request) -> Response:
        file = await self._find(request)
        content = await self._files.content(current_context().key_name, file.id)
        if content is None:
            raise _not_found()
        headers = {"content-disposition": "attachment", "x-content-type-options": "nosniff"}
        return Response(content, media_type=file.media_type, headers=headers)

    async def _find(self, request: Request) -> StoredFile:
        """Return the file that the path names. Raises NotFound, with the same words for an unknown file and for another key's."""
        if (file := await self._files.find(current_context().key_name, request.path_params["file_id"])) is None:
            raise _not_found()
        return file


def _not_found() -> NotFound:
    return NotFound("There is no such file. Files expire, and each API key has its own.", param="file_id", code="file_not_found")


def _value(form: Form, name: str) -> str | None:
    return form[name].data.decode(errors="replace").strip() if name in form else None


def _ttl(form: Form) -> int | None:
    """Return the seconds after which the client wants the file to expire. Raises InvalidRequest."""
    anchor, seconds = _value(form, "expires_after[anchor]"), _value(form, "expires_after[seconds]")
    if anchor not in (None, "created_at"):
        raise InvalidRequest("expires_after[anchor] must be created_at.", param="expires_after[anchor]")
    if seconds is None:
        if anchor is not None:
            raise InvalidRequest("expires_after[seconds] is missing.", param="expires_after[seconds]")
        return None
    return integer(seconds, "expires_after[seconds]", MIN_SECONDS, MAX_SECONDS)


def _file_object(file: StoredFile) -> dict[str, Any]:
    """Return OpenAI's description of a file."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": file.created_at,
        "expires_at": file.expires_at,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
    }
