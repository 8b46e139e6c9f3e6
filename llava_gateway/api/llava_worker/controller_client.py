"""The client of another controller: registers this server as a worker of LLaVA's controller, and sends heartbeats.

LLaVA's own workers do the same (`ModelWorker` in llava/serve/model_worker.py), so the models of several servers are on one web page.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import orjson

from llava_gateway.api.llava_worker.page_names import page_names
from llava_gateway.errors import GatewayError
from llava_gateway.serving.gateway import Gateway
from llava_gateway.settings import Settings, SettingsError, server_url

log = logging.getLogger(__name__)

HEART_BEAT_INTERVAL = 15.0
"""Seconds between two heartbeats, as in LLaVA's workers. LLaVA's controller forgets a worker after 30 seconds without one."""
TIMEOUT = 10.0
"""Seconds that a heartbeat may take, with the registration that may follow."""
MAX_ANSWER = 1 << 16
"""The upper bound of a controller's answer, in bytes."""
MAX_REASON = 200
"""Characters of a controller's answer that the log shows."""


def worker_status(gateway: Gateway) -> dict[str, Any]:
    """Return the status that a worker reports to a controller.

    Raises Unavailable while a model loads or the server shuts down, so that a controller does not use this worker.
    """
    gateway.admission.check_open()
    for name in gateway.models.names():
        gateway.model(name)
    queue_length = gateway.admission.running + gateway.admission.queued
    return {"model_names": page_names(gateway.models), "speed": 1, "queue_length": queue_length}


class ControllerClient:
    """Keeps this server registered at the controller of the setting `controller`."""

    def __init__(self, gateway: Gateway, sleep: Callable[[float], Awaitable[object]] = asyncio.sleep) -> None:
        """`sleep`: waits for a number of seconds between two heartbeats. Raises SettingsError."""
        settings = gateway.settings
        if "llava_worker" not in settings.apis:
            raise SettingsError("controller needs llava_worker among the apis")
        self._gateway = gateway
        self._controller = _http_url("controller", settings.controller)
        self._address = worker_address(settings)
        self._sleep = sleep
        self._names: list[str] | None = None
        """The names of models that the controller knows. None: it does not know this worker yet."""
        self._lost = False
        """Whether the last heartbeat has failed."""

    async def run(self) -> None:
        """Register this server, and send heartbeats until the task is cancelled. A failure of the controller is logged once."""
        async with httpx.AsyncClient(base_url=self._controller, timeout=TIMEOUT, trust_env=False) as http:
            while True:
                await self._beat(http)
                await self._sleep(HEART_BEAT_INTERVAL)

    async def _beat(self, http: httpx.AsyncClient) -> None:
        """Send a heartbeat, or register this server if the controller does not know it. Does nothing while a model is not available."""
        try:
            status = worker_status(self._gateway)
        except GatewayError:
            return
        try:
            async with asyncio.timeout(TIMEOUT):
                known = self._names == status["model_names"] and await self._is_known(http, status)
                if not known:
                    worker = {"worker_name": self._address, "check_heart_beat": True, "worker_status": status}
                    await _post(http, "/register_worker", worker)
        except (httpx.HTTPError, TimeoutError, _ControllerError) as error:
            if not self._lost:
                reason = str(error) or type(error).__name__
                log.warning("LLaVA's controller %s is lost: %s. Trying again every %d s", self._controller, reason, HEART_BEAT_INTERVAL)
            self._lost = True
            return
        if not known:
            log.info("registered at LLaVA's controller %s as %s: %s", self._controller, self._address, ", ".join(status["model_names"]))
        elif self._lost:
            log.info("LLaVA's controller %s is back", self._controller)
        self._names, self._lost = status["model_names"], False

    async def _is_known(self, http: httpx.AsyncClient, status: dict[str, Any]) -> bool:
        """Send a heartbeat, and return whether the controller knows this worker. A controller that was restarted does not."""
        beat = {"worker_name": self._address, "queue_length": status["queue_length"]}
        answer = await _post(http, "/receive_heart_beat", beat)
        return isinstance(answer, dict) and bool(answer.get("exist"))


def worker_address(settings: Settings) -> str:
    """Return the address under which users of the controller reach this server. Raises SettingsError if the settings do not tell it."""
    if settings.worker_address:
        return _http_url("worker_address", settings.worker_address)
    if settings.uds or settings.host in ("", "0.0.0.0", "::"):  # noqa: S104
        raise SettingsError("controller needs worker_address: the address under which users of the controller reach this server")
    root_path = settings.root_path.strip("/")
    return server_url(settings) + (f"/{root_path}" if root_path else "")


class _ControllerError(Exception):
    """The controller has answered with an error, or not in its protocol."""


async def _post(http: httpx.AsyncClient, path: str, body: dict[str, Any]) -> Any:
    """Send a request and return the JSON of the answer. Raises httpx.HTTPError and _ControllerError."""
    content = b""
    async with http.stream("POST", path, json=body) as response:
        async for piece in response.aiter_bytes():
            content += piece
            if len(content) > MAX_ANSWER:
                raise _ControllerError(f"the answer to {path} is too long")
    try:
        if response.status_code == 200:
            return orjson.loads(content)
    except orjson.JSONDecodeError:
        pass
    said = " ".join(content.decode(errors="replace").split())[:MAX_REASON]
    raise _ControllerError(f"{path} is answered with status {response.status_code}: {said!r}")


def _http_url(setting: str, value: str) -> str:
    """Return a setting's URL without a slash at its end. Raises SettingsError if it is none of http or https."""
    try:
        url = httpx.URL(value)
    except httpx.InvalidURL:
        url = httpx.URL()
    if url.scheme not in ("http", "https") or not url.host:
        raise SettingsError(f"{setting} {value} is not a URL such as http://localhost:10000")
    return value.rstrip("/")
