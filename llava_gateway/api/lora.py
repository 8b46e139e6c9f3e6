"""Loading and unloading LoRA adapters at run time, in vLLM's shapes.

The endpoints exist only if the setting `lora_dir` names a directory. They require an admin key. On a loopback server without API keys,
every client may use them.
"""

import asyncio
from pathlib import Path
from typing import ClassVar

from pydantic import Field
from starlette.routing import Route

from llava_gateway.api.base import Api
from llava_gateway.api.operation import ApiDescription, Operation
from llava_gateway.api.schema import RefusedField, RequestBody
from llava_gateway.auth.rate_limits import current_lease
from llava_gateway.errors import Forbidden, InvalidRequest
from llava_gateway.http.endpoints import JsonEndpoint
from llava_gateway.http.request_body import JsonBody, RequestBodyReader
from llava_gateway.http.response import ErrorRenderer, ResponseWriter
from llava_gateway.serving.gateway import Gateway
from llava_gateway.settings import SettingsError


class LoadRequest(RequestBody):
    """`POST /v1/load_lora_adapter`."""

    lora_name: str = Field(description="the name that clients will send as `model`")
    lora_path: str = Field(min_length=1, description="the adapter's directory, inside the directory of `--lora-dir`")
    load_inplace: bool | None = Field(None, description="true: replace the adapter that has this name")

    refused: ClassVar = {"is_3d_lora_weight": RefusedField("no served model has experts")}


class UnloadRequest(RequestBody):
    """`POST /v1/unload_lora_adapter`."""

    lora_name: str = Field(description="the adapter's name")


NOT_ADMIN = {403: "The API key is no admin key, or the web page that sends the request may not use this server"}
DESCRIPTION = ApiDescription(
    "LoRA adapters",
    "Loading and unloading LoRA adapters, in vLLM's shapes, with an admin key.",
    (
        Operation(
            "POST",
            "/v1/load_lora_adapter",
            "Load an adapter",
            LoadRequest,
            other_answers={"text/plain": "A sentence that names the adapter"},
            errors=NOT_ADMIN,
        ),
        Operation(
            "POST",
            "/v1/unload_lora_adapter",
            "Unload an adapter",
            UnloadRequest,
            other_answers={"text/plain": "A sentence that names the adapter"},
            errors=NOT_ADMIN | {404: "There is no such adapter"},
        ),
    ),
)


def create_api(gateway: Gateway, body_reader: RequestBodyReader, render_error: ErrorRenderer) -> Api:
    """Create the API for the directory in the setting `lora_dir`. Raises SettingsError if it is not a directory."""
    folder = Path(gateway.settings.lora_dir)
    if not folder.is_dir():
        raise SettingsError(f"lora_dir {folder} is not a directory")
    handlers = LoraHandlers(gateway, folder.resolve())
    paths = {"/v1/load_lora_adapter": handlers.load, "/v1/unload_lora_adapter": handlers.unload}
    return Api(
        [Route(path, JsonEndpoint(paths[path], render_error, gateway.admission, body_reader), methods=["POST"]) for path in paths],
        render_error,
        description=DESCRIPTION,
    )


class LoraHandlers:
    """The handlers of the endpoints."""

    def __init__(self, gateway: Gateway, folder: Path) -> None:
        self._gateway = gateway
        self._folder = folder

    async def load(self, body: JsonBody, response: ResponseWriter) -> None:
        _check_admin(self._gateway)
        request = LoadRequest.read(body)
        path = await asyncio.to_thread(self._find, request.lora_path)
        loading = self._gateway.models.load(request.lora_name, path, in_place=bool(request.load_inplace))
        await asyncio.shield(loading)  # a cancelled load would leave an adapter without a name in the engine
        await _write_text(response, f"Success: LoRA adapter '{request.lora_name}' added successfully.")

    async def unload(self, body: JsonBody, response: ResponseWriter) -> None:
        _check_admin(self._gateway)
        request = UnloadRequest.read(body)
        await self._gateway.models.unload(request.lora_name)
        await _write_text(response, f"Success: LoRA adapter '{request.lora_name}' removed successfully.")

    def _find(self, lora_path: str) -> Path:
        """Return the adapter's directory with all links resolved.

        Raises InvalidRequest. The error is the same for every path outside the operator's directory, so it reveals nothing about them.
        """
        try:
            path = (self._folder / lora_path).resolve(strict=True)
            resolved = [path, *(file.resolve(strict=True) for file in path.iterdir())]
            if all(each.is_relative_to(self._folder) for each in resolved):
                return path
        except (OSError, ValueError, RuntimeError):  # a missing path, an invalid path, a link to itself
            pass
        raise InvalidRequest("lora_path is not found, or not an adapter in the server's --lora-dir.", param="lora_path")


def _check_admin(gateway: Gateway) -> None:
    """Raise Forbidden unless the request has an admin key, or comes to a loopback server without keys (`auth` is "auto" there)."""
    lease = current_lease()
    if not (lease.key.admin if lease else gateway.settings.auth == "auto"):
        raise Forbidden("This requires an admin key; `llava-gateway keys new NAME --admin` creates one.", code="admin_key_required")


async def _write_text(response: ResponseWriter, text: str) -> None:
    await response.body(200, text.encode(), b"text/plain; charset=utf-8")
