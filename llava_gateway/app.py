"""The composition root: settings and an engine become an ASGI app."""

import asyncio
import logging
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request

from llava_gateway.demo import CHECKPOINT, ENGINE_FLAGS, MODEL_NAME
from llava_gateway.doors import adapters, feedback, llava, openai, ops, page, sambastudio, webui
from llava_gateway.engine import Engine, EngineStartError
from llava_gateway.engine.supervisor import Supervisor
from llava_gateway.engine.vllm import VllmEngine
from llava_gateway.engine.vllm.adapters import lora_flags
from llava_gateway.errors import GatewayError, MethodNotAllowed, NotFound
from llava_gateway.gateway import Gateway
from llava_gateway.models import adapters_of
from llava_gateway.settings import Settings
from llava_gateway.web.around import Around
from llava_gateway.web.body import Bodies
from llava_gateway.web.door import Failure, MakeDoor, fail_by_path

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
    model = settings.model or _default_model()
    name = settings.served_model_name or (Path(model).resolve().name if Path(model).is_dir() else model)
    if model == MODEL_NAME:
        model, engine_flags = str(CHECKPOINT), (*ENGINE_FLAGS, *engine_flags)
    lora = adapters_of(settings.lora_modules)
    if lora or settings.lora_dir:
        engine_flags = (*lora_flags(len(lora)), *engine_flags)
    engine_flags = (*engine_flags, "--served-model-name", name)
    supervisor = Supervisor(engine or (lambda: VllmEngine(model, engine_flags)), settings.engine_timeout, on_engine_death, lora)
    gateway = Gateway(settings, supervisor, name)
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
        try:
            yield
        finally:
            starting.cancel()
            await gateway.stop()
            await around.close()

    async def on_error(request: Request, error: Exception) -> Failure:
        headers = error.headers if isinstance(error, HTTPException) else None
        return Failure(_refusal(request, error), fail_for(request.scope), headers or {})

    app = Starlette(
        routes=[*(route for door in doors for route in door.routes), *ops.routes(gateway)],
        middleware=around.middleware,
        exception_handlers={GatewayError: on_error, HTTPException: on_error},  # type: ignore[dict-item]  # any ASGI app is a response
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    app.state.gateway = gateway
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
