"""The composition root: settings and an engine become an ASGI app."""

import asyncio
import logging
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request

from llava_gateway.api import feedback
from llava_gateway.api import health as ops
from llava_gateway.api import llava_worker as llava
from llava_gateway.api import lora as adapters
from llava_gateway.api.base import Failure, MakeDoor, fail_by_path
from llava_gateway.api.chat_ui import router as page
from llava_gateway.api.openai import router as openai
from llava_gateway.api.sambastudio import router as sambastudio
from llava_gateway.api.text_generation_webui import router as webui
from llava_gateway.demo import CHECKPOINT, ENGINE_FLAGS, MODEL_NAME
from llava_gateway.engine.base import Engine
from llava_gateway.engine.supervisor import Supervisor
from llava_gateway.engine.vllm.engine import VllmEngine
from llava_gateway.engine.vllm.lora import lora_flags
from llava_gateway.errors import EngineStartError, GatewayError, MethodNotAllowed, NotFound
from llava_gateway.http.middleware.stack import Around
from llava_gateway.http.request_body import Bodies
from llava_gateway.observability import metrics
from llava_gateway.observability.loop_monitor import LoopMonitor
from llava_gateway.serving.gateway import Gateway
from llava_gateway.serving.model_registry import Backend, adapters_of
from llava_gateway.settings import Settings
from llava_gateway.types import Adapter

log = logging.getLogger(__name__)

DOORS: dict[str, MakeDoor] = {
    "openai": openai.door,
    "deepinfra": openai.deepinfra,
    "sambastudio": sambastudio.door,
    "webui": webui.door,
    "llava": llava.door,
    "page": partial(page.door, fail=openai.fail),
}
"""Dialects and the chat page, by the names that `--doors` knows."""


def create_app(
    settings: Settings | None = None,
    engine_flags: Sequence[str] = (),
    *,
    engine: Callable[[], Engine] | None = None,
    on_start_failure: Callable[[EngineStartError], None] | None = None,
    on_engine_death: Callable[[], None] | None = None,
) -> Starlette:
    """The gateway as an ASGI app, to run on any server or to mount in another app (which then has to run its lifespan).

    `engine_flags` are vLLM's, as on its command line. The model loads in the background once the lifespan starts: until then /ready and
    requests answer 503. `on_start_failure` is told if it does not load; `on_engine_death` is called instead of starting the engine anew.
    `engine` makes another engine than vLLM. The gateway is the app's `state.gateway`. Raises SettingsError.
    """
    settings = settings or Settings()
    launch = launch_of(settings, engine_flags)
    make = engine or (lambda: VllmEngine(launch.model, launch.flags))
    supervisor = Supervisor(make, settings.engine_timeout, on_engine_death, launch.adapters)
    gateway = Gateway(settings, [Backend(launch.name, supervisor, settings.template, settings.model_alias)])
    return make_app(gateway, on_start_failure)


@dataclass(frozen=True)
class Launch:
    """What an engine is started with."""

    name: str
    """What clients call the model."""
    model: str
    flags: tuple[str, ...]
    """vLLM's own."""
    adapters: tuple[Adapter, ...]


def launch_of(settings: Settings, engine_flags: Sequence[str]) -> Launch:
    """Raises SettingsError."""
    model = settings.model or _default_model()
    name = settings.served_model_name or (Path(model).resolve().name if Path(model).is_dir() else model)
    flags = (*engine_flags, "--served-model-name", name)
    adapters = tuple(adapters_of(settings.lora_modules))
    if adapters or settings.lora_dir:
        flags = (*lora_flags(len(adapters)), *flags)
    if model == MODEL_NAME:
        model, flags = str(CHECKPOINT), (*ENGINE_FLAGS, *flags)
    return Launch(name, model, flags, adapters)


def make_app(
    gateway: Gateway,
    on_start_failure: Callable[[EngineStartError], None] | None = None,
    exposition: Callable[[], Awaitable[bytes]] = metrics.exposition,
) -> Starlette:
    """All that is spoken to this gateway's clients. `exposition`: the page that Prometheus reads. Raises SettingsError."""
    settings = gateway.settings
    bodies = Bodies(settings)
    doors = [DOORS[name](gateway, bodies) for name in DOORS if name in settings.doors]
    if settings.feedback_dir:
        doors.append(feedback.door(gateway, bodies, openai.fail))
    if settings.lora_dir:
        doors.append(adapters.door(gateway, bodies, openai.fail))
    fail_for = fail_by_path(doors, openai.fail)
    around = Around(settings, doors, fail_for)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        starting = asyncio.create_task(_start(gateway, on_start_failure))
        monitor = LoopMonitor()
        monitor.start()
        try:
            yield
        finally:
            monitor.stop()
            starting.cancel()
            await gateway.stop()
            await around.close()

    async def on_error(request: Request, error: Exception) -> Failure:
        headers = error.headers if isinstance(error, HTTPException) else None
        return Failure(_refusal(request, error), fail_for(request.scope), headers or {})

    app = Starlette(
        routes=[*(route for door in doors for route in door.routes), *ops.routes(gateway, exposition)],
        middleware=around.middleware,
        exception_handlers={GatewayError: on_error, HTTPException: on_error},  # type: ignore[dict-item]  # any ASGI app is a response
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    app.state.gateway = gateway
    app.state.bodies = bodies
    return app


async def _start(gateway: Gateway, on_failure: Callable[[EngineStartError], None] | None) -> None:
    try:
        await gateway.start()
    except EngineStartError as error:
        log.error("The model did not load: %s", error)
        if on_failure:
            on_failure(error)
    except Exception as error:
        log.exception("The model did not load")
        if on_failure:
            on_failure(EngineStartError(str(error)))


def _default_model() -> str:
    """What is served when no model is named: the real LLaVA where an NVIDIA GPU is, the demo elsewhere."""
    try:
        found = subprocess.run(("nvidia-smi", "-L"), capture_output=True, timeout=10, check=False).returncode == 0  # noqa: S607
    except (OSError, subprocess.TimeoutExpired):
        found = False
    return "llava-hf/llava-1.5-7b-hf" if found else "llava-demo"


def _refusal(request: Request, error: Exception) -> GatewayError:
    """Starlette's own refusals as ours."""
    if isinstance(error, HTTPException) and error.status_code == 405:
        return MethodNotAllowed(f"{request.method} is not allowed here.", code="method_not_allowed")
    return error if isinstance(error, GatewayError) else NotFound(f"There is no {request.scope['path']} here.", code="not_found")
