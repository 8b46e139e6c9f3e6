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

from llava_gateway.api import feedback, health, lora
from llava_gateway.api.anthropic import router as anthropic
from llava_gateway.api.base import ApiFactory, ErrorResponse, error_renderer_by_path
from llava_gateway.api.chat_ui import router as chat_ui
from llava_gateway.api.docs import router as docs
from llava_gateway.api.llava_worker import router as llava_worker
from llava_gateway.api.llava_worker.controller_client import ControllerClient
from llava_gateway.api.ollama import router as ollama
from llava_gateway.api.openai import router as openai
from llava_gateway.api.sambastudio import router as sambastudio
from llava_gateway.api.text_generation_webui import router as text_generation_webui
from llava_gateway.concurrency import cancel_and_wait
from llava_gateway.demo import CHECKPOINT, ENGINE_FLAGS, MODEL_NAME
from llava_gateway.engine.base import Engine
from llava_gateway.engine.supervisor import Supervisor
from llava_gateway.engine.vllm.engine import VllmEngine
from llava_gateway.engine.vllm.lora import lora_flags
from llava_gateway.errors import EngineStartError, GatewayError, MethodNotAllowed, NotFound
from llava_gateway.http.exact_routes import ExactRoutes
from llava_gateway.http.middleware.stack import MiddlewareStack
from llava_gateway.http.request_body import RequestBodyReader
from llava_gateway.model_info import LoraAdapter
from llava_gateway.observability import metrics
from llava_gateway.observability.loop_monitor import LoopMonitor
from llava_gateway.serving.gateway import Gateway
from llava_gateway.serving.model_registry import ServedModel, adapters_of
from llava_gateway.settings import Settings

log = logging.getLogger(__name__)

APIS: dict[str, tuple[ApiFactory, ...]] = {
    "openai": (openai.create_api,),
    "deepinfra": (openai.create_deepinfra_api,),
    "anthropic": (anthropic.create_api,),
    "ollama": (ollama.create_api,),
    "sambastudio": (sambastudio.create_api, openai.create_sambastudio_api),
    "text_generation_webui": (text_generation_webui.create_api,),
    "llava_worker": (llava_worker.create_api,),
    "chat_ui": (partial(chat_ui.create_api, render_error=openai.render_error),),
}
"""The APIs by their names in the setting `apis`."""


def create_app(
    settings: Settings | None = None,
    engine_flags: Sequence[str] = (),
    *,
    engine: Callable[[], Engine] | None = None,
    on_start_failure: Callable[[EngineStartError], None] | None = None,
    on_engine_death: Callable[[], None] | None = None,
) -> Starlette:
    """Create the gateway as an ASGI app, to run on any server or to mount in another app, which then has to run its lifespan.

    The model loads in the background once the lifespan has started. Until then `/ready` and requests answer 503. The `Gateway` is the app's
    `state.gateway`.

    `settings`: default: from the environment and `llava-gateway.toml`. `engine_flags`: vLLM's own flags, as on its command line.
    `engine`: creates another engine than vLLM, such as a fake one in tests. `on_start_failure`: is called if the model does not load.
    `on_engine_death`: is called when the engine dies, instead of a restart. Raises SettingsError.

        app = create_app(Settings(model="llava-demo"))
        uvicorn.run(app, port=8000)
    """
    settings = settings or Settings()
    launch = launch_of(settings, engine_flags)
    make = engine or (lambda: VllmEngine(launch.model, launch.flags, fast_paths=settings.fast_paths == "on"))
    supervisor = Supervisor(make, settings.engine_timeout, on_engine_death, launch.adapters)
    served_model = ServedModel(
        launch.name, supervisor, settings.template, settings.model_alias, launch.model, image_start_end=settings.image_start_end
    )
    gateway = Gateway(settings, [served_model])
    return build_app(gateway, on_start_failure)


@dataclass(frozen=True)
class Launch:
    """What an engine is started with."""

    name: str
    """The name that clients use."""
    model: str
    """A directory or a Hugging Face id."""
    flags: tuple[str, ...]
    """vLLM's own flags."""
    adapters: tuple[LoraAdapter, ...]


def launch_of(settings: Settings, engine_flags: Sequence[str]) -> Launch:
    """Return what the engine for these settings is started with. Raises SettingsError."""
    model = settings.model or _default_model()
    name = settings.served_model_name or (Path(model).resolve().name if Path(model).is_dir() else model)
    flags = (*engine_flags, "--served-model-name", name)
    adapters = tuple(adapters_of(settings.lora_modules))
    if adapters or settings.lora_dir:
        flags = (*lora_flags(len(adapters)), *flags)
    if model == MODEL_NAME:
        model, flags = str(CHECKPOINT), (*ENGINE_FLAGS, *flags)
    return Launch(name, model, flags, adapters)


def build_app(
    gateway: Gateway,
    on_start_failure: Callable[[EngineStartError], None] | None = None,
    exposition: Callable[[], Awaitable[bytes]] = metrics.exposition,
) -> Starlette:
    """Build the ASGI app of a gateway: its APIs and their middleware.

    `on_start_failure`: as in `create_app`. `exposition`: returns the page that Prometheus reads. Raises SettingsError.
    """
    settings = gateway.settings
    body_reader = RequestBodyReader(settings)
    apis = [create(gateway, body_reader) for name in APIS if name in settings.apis for create in APIS[name]]
    if settings.feedback_dir:
        apis.append(feedback.create_api(gateway, body_reader, openai.render_error))
    if settings.lora_dir:
        apis.append(lora.create_api(gateway, body_reader, openai.render_error))
    apis.append(health.create_api(gateway, exposition, openai.render_error))
    apis.append(docs.create_api(apis, openai.render_error, with_keys=bool(settings.api_keys or settings.keys_file)))
    find_error_renderer = error_renderer_by_path(apis, openai.render_error)
    controller_client = ControllerClient(gateway) if settings.controller else None
    stack = MiddlewareStack(settings, [path for api in apis for path in api.public], find_error_renderer)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        starting = asyncio.create_task(_start(gateway, on_start_failure))
        registering = asyncio.create_task(_register(controller_client, starting)) if controller_client else None
        monitor = LoopMonitor()
        monitor.start()
        try:
            yield
        finally:
            monitor.stop()
            if registering:
                await cancel_and_wait(registering)
            starting.cancel()
            await gateway.stop()
            await stack.close()

    async def on_error(request: Request, error: Exception) -> ErrorResponse:
        headers = error.headers if isinstance(error, HTTPException) else None
        return ErrorResponse(_gateway_error(request, error), find_error_renderer(request.scope), headers or {})

    routes = [route for api in apis for route in api.routes]
    app = Starlette(
        routes=[ExactRoutes(routes), *routes],
        middleware=stack.middleware,
        exception_handlers={GatewayError: on_error, HTTPException: on_error},  # type: ignore[dict-item]  # any ASGI app is a response
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    app.state.gateway = gateway
    app.state.body_reader = body_reader
    return app


async def _start(gateway: Gateway, on_failure: Callable[[EngineStartError], None] | None) -> None:
    try:
        await gateway.start()
    except EngineStartError as error:
        log.error("The model did not load: %s", error)
        if on_failure:
            on_failure(error)
    except Exception as error:
        log.error("The model did not load: %s: %s", type(error).__name__, error, exc_info=log.isEnabledFor(logging.DEBUG))
        if on_failure:
            on_failure(EngineStartError(str(error)))


async def _register(controller_client: ControllerClient, starting: asyncio.Task[None]) -> None:
    """Keep the server registered at LLaVA's controller, once the models have loaded."""
    await asyncio.wait((starting,))
    await controller_client.run()


def _default_model() -> str:
    """Return the model for settings that name none: LLaVA-1.5 with an NVIDIA GPU, otherwise the demo model."""
    try:
        found = subprocess.run(("nvidia-smi", "-L"), capture_output=True, timeout=10, check=False).returncode == 0  # noqa: S607
    except (OSError, subprocess.TimeoutExpired):
        found = False
    return "llava-hf/llava-1.5-7b-hf" if found else "llava-demo"


def _gateway_error(request: Request, error: Exception) -> GatewayError:
    """Return Starlette's HTTPException as a GatewayError."""
    if isinstance(error, HTTPException) and error.status_code == 405:
        return MethodNotAllowed(f"{request.method} is not allowed here.", code="method_not_allowed")
    return error if isinstance(error, GatewayError) else NotFound(f"There is no {request.scope['path']} here.", code="not_found")
