"""The door for LoRA adapters at run time, in vLLM's shapes. It is there only where the operator has named a directory for them, and open to
admin keys alone, or, on a loopback server without keys, to whoever can reach that."""

import asyncio
from pathlib import Path
from typing import ClassVar

from pydantic import Field
from starlette.routing import Route

from llava_gateway.api.base import Api
from llava_gateway.api.schema import Refused, RequestBody
from llava_gateway.auth.rate_limits import current_lease
from llava_gateway.errors import Forbidden, InvalidRequest
from llava_gateway.http.endpoints import JsonEndpoint
from llava_gateway.http.request_body import JsonBody, RequestBodyReader
from llava_gateway.http.response import ErrorRenderer, ResponseWriter
from llava_gateway.serving.gateway import Gateway
from llava_gateway.settings import SettingsError


class LoadRequest(RequestBody):
    """`POST /v1/load_lora_adapter`."""

    lora_name: str = Field(description="the name that clients will ask for")
    lora_path: str = Field(min_length=1, description="the adapter's directory, below that of `--lora-dir`")
    load_inplace: bool | None = Field(None, description="replaces an adapter of this name")

    refused: ClassVar = {"is_3d_lora_weight": Refused("No model that is served here has experts.")}


class UnloadRequest(RequestBody):
    """`POST /v1/unload_lora_adapter`."""

    lora_name: str = Field(description="the name that clients ask for")


def create_api(gateway: Gateway, body_reader: RequestBodyReader, render_error: ErrorRenderer) -> Api:
    """`fail`: how errors are put. Raises SettingsError if there is no such directory."""
    folder = Path(gateway.settings.lora_dir)
    if not folder.is_dir():
        raise SettingsError(f"lora_dir {folder} is not a directory")
    handlers = LoraHandlers(gateway, folder.resolve())
    paths = {"/v1/load_lora_adapter": handlers.load, "/v1/unload_lora_adapter": handlers.unload}
    return Api(
        [Route(path, JsonEndpoint(paths[path], render_error, gateway.admission, body_reader), methods=["POST"]) for path in paths],
        render_error,
    )


class LoraHandlers:
    def __init__(self, gateway: Gateway, folder: Path) -> None:
        self._gateway = gateway
        self._folder = folder

    async def load(self, body: JsonBody, response: ResponseWriter) -> None:
        self._check_admin()
        asked = LoadRequest.read(body)
        path = await asyncio.to_thread(self._find, asked.lora_path)
        loading = self._gateway.models.load(asked.lora_name, path, in_place=bool(asked.load_inplace))
        await asyncio.shield(loading)  # half loaded, it would be in the engine and have no name
        await _say(response, f"Success: LoRA adapter '{asked.lora_name}' added successfully.")

    async def unload(self, body: JsonBody, response: ResponseWriter) -> None:
        self._check_admin()
        asked = UnloadRequest.read(body)
        await self._gateway.models.unload(asked.lora_name)
        await _say(response, f"Success: LoRA adapter '{asked.lora_name}' removed successfully.")

    def _check_admin(self) -> None:
        """Raises Forbidden."""
        lease = current_lease()
        if not (lease.key.admin if lease else self._gateway.settings.auth == "auto"):
            raise Forbidden("This needs an admin key, as `llava-gateway keys new NAME --admin` makes it.", code="admin_key_required")

    def _find(self, given: str) -> Path:
        """The directory, without links. Raises InvalidRequest, and does not tell what is outside of the operator's directory."""
        try:
            path = (self._folder / given).resolve(strict=True)
            inside = [path, *(file.resolve(strict=True) for file in path.iterdir())]
            if all(each.is_relative_to(self._folder) for each in inside):
                return path
        except (OSError, ValueError, RuntimeError):  # not there, no path at all, a link to itself
            pass
        raise InvalidRequest("lora_path is not found, or not an adapter in the server's --lora-dir.", param="lora_path")


async def _say(response: ResponseWriter, text: str) -> None:
    await response.body(200, text.encode(), b"text/plain; charset=utf-8")
