"""A server that is a worker of another controller: it registers, sends heartbeats, and survives the controller's failures."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from helpers.llava_worker import PAGE_NAME
from helpers.requests import MODEL
from helpers.server import free_port
from helpers.silent_engine import SilentEngine
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from llava_gateway.api.llava_worker import controller_client
from llava_gateway.api.llava_worker.controller_client import HEART_BEAT_INTERVAL, ControllerClient, worker_address
from llava_gateway.app import create_app
from llava_gateway.concurrency import cancel_and_wait
from llava_gateway.engine.supervisor import Supervisor
from llava_gateway.errors import EngineStartError, Unavailable
from llava_gateway.model_info import ModelInfo
from llava_gateway.serving.gateway import Gateway
from llava_gateway.serving.model_registry import ServedModel
from llava_gateway.settings import Settings, SettingsError

ADDRESS = "http://127.0.0.1:8000"


class Controller:
    """A controller with the two paths that workers use. Its memory of workers is lost when it is started again."""

    def __init__(self) -> None:
        self.port = free_port()
        self.workers: dict[str, dict[str, Any]] = {}
        self.registered = asyncio.Event()
        self.received: list[str] = []
        """The paths of the requests."""
        self.answer: Response | None = None
        """The answer to every request, instead of the protocol's."""
        self.silent = False
        """Whether the controller never answers."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def register_worker(self, request: Request) -> Response:
        self.received.append(request.url.path)
        worker = await request.json()
        if self.answer is None:
            self.workers[worker["worker_name"]] = worker
            self.registered.set()
        return self.answer or JSONResponse(None)

    async def receive_heart_beat(self, request: Request) -> Response:
        self.received.append(request.url.path)
        if self.silent:
            await asyncio.Future()
        beat = await request.json()
        assert isinstance(beat["queue_length"], int)
        return self.answer or JSONResponse({"exist": beat["worker_name"] in self.workers})

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        self.workers = {}
        paths = (self.register_worker, self.receive_heart_beat)
        app = Starlette(routes=[Route(f"/{path.__name__}", path, methods=["POST"]) for path in paths])
        server = uvicorn.Server(uvicorn.Config(app, port=self.port, log_config=None, timeout_graceful_shutdown=0))
        serving = asyncio.create_task(server.serve())
        while not server.started:  # noqa: ASYNC110 # uvicorn has no event for it
            await asyncio.sleep(0.01)
        try:
            yield
        finally:
            server.should_exit = True
            await serving


class Beats:
    """A clock that stands still: a heartbeat is sent when the test asks for the next one."""

    def __init__(self) -> None:
        self._sleeping, self._next = asyncio.Event(), asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        assert seconds == HEART_BEAT_INTERVAL
        self._sleeping.set()
        await self._next.wait()
        self._next.clear()

    async def done(self) -> None:
        """Wait until the client has sent its heartbeat."""
        await asyncio.wait_for(self._sleeping.wait(), 30)
        self._sleeping.clear()

    async def next(self) -> None:
        """Let the interval pass, and wait until the client has sent the heartbeat that follows."""
        self._next.set()
        await self.done()


@asynccontextmanager
async def worker(controller: Controller, *, start: bool = True) -> AsyncIterator[tuple[Gateway, Beats]]:
    """Run a gateway's client of the controller, and yield after its first heartbeat. `start`: whether the model has loaded."""
    gateway = Gateway(Settings(model=MODEL, controller=controller.url), [ServedModel(MODEL, Supervisor(SilentEngine, 10))])
    if start:
        await gateway.start()
    beats = Beats()
    running = asyncio.create_task(ControllerClient(gateway, beats.sleep).run())
    try:
        await beats.done()
        yield gateway, beats
        assert not running.done()
    finally:
        await cancel_and_wait(running)
        await gateway.stop()


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, controller_client.log.name)


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the word that matters of each line that the client has logged since the last call."""
    said = [line.getMessage() for line in caplog.records if line.name == controller_client.log.name]
    caplog.clear()
    return ["registered" if each.startswith("registered") else each.split()[4].strip(":.") for each in said]


def test_worker_registers_as_llavas_own_worker_does_and_sends_heartbeats() -> None:
    async def scenario() -> None:
        controller = Controller()
        async with controller.running(), worker(controller) as (_, beats):
            status = {"model_names": [PAGE_NAME], "speed": 1, "queue_length": 0}
            assert controller.workers == {ADDRESS: {"worker_name": ADDRESS, "check_heart_beat": True, "worker_status": status}}
            await beats.next()
            await beats.next()
            assert controller.received == ["/register_worker", "/receive_heart_beat", "/receive_heart_beat"]

    asyncio.run(scenario())


def test_worker_registers_again_at_a_controller_that_was_restarted(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        controller = Controller()
        async with AsyncExitStack() as stack:
            async with controller.running():
                _, beats = await stack.enter_async_context(worker(controller))
            assert logged(caplog) == ["registered"]
            await beats.next()
            await beats.next()
            assert logged(caplog) == ["lost"], "one line, however long the controller is down"
            async with controller.running():
                await beats.next()
                assert list(controller.workers) == [ADDRESS]
                assert logged(caplog) == ["registered"]
                controller.workers.clear()
                await beats.next()
                assert list(controller.workers) == [ADDRESS]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "answer",
    [
        Response(b"<html>", 502),
        Response(b"\xff not JSON"),
        Response(b'"' + b"x" * (1 << 20) + b'"'),
        JSONResponse({"text": "no other workers", "error_code": 1}, 400),
    ],
    ids=["status", "not JSON", "too long", "refused"],
)
def test_controller_that_answers_nonsense_is_reported_once_and_asked_again(caplog: pytest.LogCaptureFixture, answer: Response) -> None:
    async def scenario() -> None:
        controller = Controller()
        controller.answer = answer
        async with controller.running(), worker(controller) as (_, beats):
            await beats.next()
            assert logged(caplog) == ["lost"]
            controller.answer = None
            await beats.next()
            assert logged(caplog) == ["registered"]
            controller.answer = answer
            await beats.next()
            controller.answer = None
            await beats.next()
            assert logged(caplog) == ["lost", "back"]

    asyncio.run(scenario())


def test_silent_controller_does_not_hold_the_heartbeat_for_ever(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controller_client, "TIMEOUT", 0.2)

    async def scenario() -> None:
        controller = Controller()
        async with controller.running(), worker(controller) as (_, beats):
            controller.silent = True
            await beats.next()
            assert logged(caplog) == ["registered", "lost"]

    asyncio.run(scenario())


def test_worker_that_cannot_answer_is_not_registered() -> None:
    """LLaVA's controller forgets a worker without heartbeats, and sends it no requests."""

    async def scenario() -> None:
        controller = Controller()
        async with controller.running(), worker(controller, start=False) as (gateway, beats):
            assert controller.received == []
            await gateway.start()
            await beats.next()
            assert controller.received == ["/register_worker"]
            gateway.admission.close(Unavailable("The server is shutting down."))
            await beats.next()
            assert controller.received == ["/register_worker"]

    asyncio.run(scenario())


def test_app_registers_once_the_model_has_loaded_and_ends_while_the_controller_is_silent() -> None:
    async def scenario() -> None:
        loaded, controller = asyncio.Event(), Controller()

        class SlowEngine(SilentEngine):
            async def start(self) -> ModelInfo:
                await loaded.wait()
                return await super().start()

        app = create_app(Settings(model=MODEL, controller=controller.url, worker_address="http://worker:1/"), engine=SlowEngine)
        async with controller.running():
            async with (
                app.router.lifespan_context(app),
                httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as http,
            ):
                assert (await http.get("/ready")).status_code == 503
                assert controller.received == []
                loaded.set()
                await controller.registered.wait()
                assert list(controller.workers) == ["http://worker:1"]
            controller.silent = True

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_app_whose_model_does_not_load_ends_cleanly() -> None:
    async def scenario() -> None:
        class BrokenEngine(SilentEngine):
            async def start(self) -> ModelInfo:
                raise EngineStartError("broken")

        failed = asyncio.Event()
        controller = f"http://127.0.0.1:{free_port()}"
        app = create_app(Settings(model=MODEL, controller=controller), engine=BrokenEngine, on_start_failure=lambda error: failed.set())
        async with app.router.lifespan_context(app):
            await failed.wait()

    asyncio.run(asyncio.wait_for(scenario(), 60))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ADDRESS),
        ({"host": "::1", "port": 9}, "http://[::1]:9"),
        ({"ssl_certfile": "cert.pem", "root_path": "/llava/"}, "https://127.0.0.1:8000/llava"),
        ({"host": "0.0.0.0", "worker_address": "http://gpu-1:8000/"}, "http://gpu-1:8000"),
    ],
)
def test_worker_address_is_the_one_that_other_programs_reach(settings: dict[str, Any], expected: str) -> None:
    assert worker_address(Settings(model=MODEL, **settings)) == expected


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"controller": "localhost:10000"}, "controller localhost:10000"),
        ({"controller": "http://[::1"}, "controller"),
        ({"worker_address": "gpu-1"}, "worker_address gpu-1"),
        ({"host": "0.0.0.0"}, "worker_address"),
        ({"host": "::"}, "worker_address"),
        ({"uds": "socket"}, "worker_address"),
        ({"apis": ("openai",)}, "llava_worker"),
    ],
)
def test_settings_with_which_no_controller_could_use_this_server_are_refused(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(SettingsError) as refused:
        create_app(Settings(model=MODEL, **{"controller": "http://localhost:10000"} | settings), engine=SilentEngine)
    assert named in str(refused.value)
