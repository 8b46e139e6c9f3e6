"""What clients may ask for by name: the models that are served, each under its name and its aliases, and their LoRA adapters, each a model
of its own, which come and go while others are answered."""

import asyncio
import itertools
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from llava_gateway.engine.supervisor import Supervisor
from llava_gateway.errors import EngineStartError, GatewayError, InvalidRequest, NotFound, Unavailable
from llava_gateway.observability.context import current
from llava_gateway.prompts.renderer import PromptRenderer
from llava_gateway.prompts.templates import BUILT_IN, aliases, chosen
from llava_gateway.settings import SettingsError
from llava_gateway.types import Adapter, ModelInfo

log = logging.getLogger(__name__)


class Backend:
    def __init__(self, name: str, engine: Supervisor, template: str = "", more_names: Sequence[str] = ()) -> None:
        """`template` and `more_names` as the settings `template` and `model_alias` have them. Raises SettingsError."""
        self.name = name
        self.engine = engine
        self.templates: dict[str, str | None] = {name: None, **aliases(more_names)}
        """Its names, and the built-in template that goes with each; None: its own."""
        self.created = int(time.time())
        self._template = chosen(template) if template else None
        self._model: ModelInfo | None = None

    async def start(self) -> None:
        """Load the model; until this returns, requests are told to wait. Raises EngineStartError."""
        start = time.monotonic()
        model = await self.engine.start()
        if not model.chat_template and self._template is None:
            raise EngineStartError(f"{self.name} has no chat template; name one of {', '.join(BUILT_IN)} with --template")
        self.prompts = PromptRenderer(model, self._template)
        self._model = model
        per_image = f"{model.vision.fewest} to {model.vision.most}" if model.vision.grids else str(model.vision.most)
        log.info("%s is ready after %.1f s: %d tokens of context, %s per image",
                 self.name, time.monotonic() - start, model.context_length, per_image)  # fmt: skip

    def loaded(self) -> ModelInfo:
        """Raises Unavailable while it loads, or while its engine is dead."""
        self.engine.check()
        if self._model is None:  # the engine lives, and its model's template cannot be used
            raise Unavailable("The model did not load; the server's log says why.", code="model_failed")
        return self._model

    def check_lately(self) -> None:
        """Whether the engine has answered within the last seconds. Raises Unavailable."""
        self.loaded()
        self.engine.check_lately()


ADAPTER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")


@dataclass(slots=True)
class _Served:
    adapter: Adapter
    backend: Backend
    users: int = 0
    """Requests that need it to stay."""
    retired: bool = False
    """Whether it goes with its last user."""
    created: int = field(default_factory=lambda: int(time.time()))


class Models:
    """Used from one event loop."""

    def __init__(self, backends: Sequence[Backend]) -> None:
        """Their adapters are those that their engines start with. Raises SettingsError."""
        self._backends: dict[str, Backend] = {}
        """By each of their names."""
        self._served: dict[str, _Served] = {}
        for backend in backends:
            for name in backend.templates:
                self._check_free(name, "served_model_name, model_alias")
                self._backends[name] = backend
        for backend in backends:
            for adapter in backend.engine.adapters:
                self._check_free(adapter.name, "lora_modules")
                self._served[adapter.name] = _Served(adapter, backend)
        self._numbers = itertools.count(len(self._served) + 1)
        self._loading = asyncio.Lock()

    def __contains__(self, name: str) -> bool:
        return name in self._backends or name in self._served

    def names(self) -> list[str]:
        """Of what is served to this caller. Whoever may ask for a model may do so by its aliases; its adapters are other models."""
        caller = current().caller
        if caller is None:
            return [*self._backends, *self._served]
        models = [name for name, backend in self._backends.items() if caller.allows(name) or caller.allows(backend.name)]
        return models + [name for name in self._served if caller.allows(name)]

    def check(self, name: str) -> None:
        """Raises NotFound unless the model of this name is served here, to this caller."""
        if name not in (names := self.names()):
            raise _not_found(name, f"; {names[0]!r} is served" if names else "")

    def backend(self, name: str) -> Backend:
        """What answers under this name. Raises NotFound."""
        if backend := self._backends.get(name):
            return backend
        if name not in self._served:  # any longer
            raise _not_found(name)
        return self._served[name].backend

    def template(self, name: str) -> str | None:
        """The built-in template that goes with this name; None: the server's own."""
        return self._backends[name].templates[name] if name in self._backends else None

    def created(self, name: str) -> int:
        """Unix time at which it began to be served."""
        return self._served[name].created if name in self._served else self._backends[name].created

    def parent(self, name: str) -> str | None:
        """The model that this adapter changes; None for a model."""
        return self._served[name].backend.name if name in self._served else None

    @asynccontextmanager
    async def used(self, name: str) -> AsyncIterator[Adapter | None]:
        """The adapter of this name, which stays loaded meanwhile; None for the model. Raises NotFound."""
        if name in self._backends:
            yield None
            return
        if name not in self._served:  # any longer
            raise _not_found(name)
        served = self._served[name]
        served.users += 1
        try:
            yield served.adapter
        finally:
            served.users -= 1
            await asyncio.shield(self._forget(served))  # also if the client has left by now

    async def load(self, name: str, path: Path, *, in_place: bool) -> None:
        """Serve the adapter in this directory, whose path is absolute; it is the first model's. `in_place`: also where there is one of this
        name, which requests that have come before go on with. Raises GatewayError, and then nothing has changed."""
        async with self._loading:
            if not ADAPTER_NAME.fullmatch(name):
                raise InvalidRequest("An adapter's name has letters, digits and . _ : / -, at most 128.", param="lora_name")
            if name in self._backends:
                raise InvalidRequest(f"{name!r} is a name of the model itself.", param="lora_name")
            if name in self._served and not in_place:
                raise InvalidRequest(f"There is an adapter {name!r} already; `load_inplace` replaces it.", param="lora_name")
            adapter = Adapter(name, str(path), next(self._numbers))
            backend = next(iter(self._backends.values()))
            await backend.engine.load_adapter(adapter)
            old = self._served.pop(name, None)
            self._served[name] = _Served(adapter, backend)
        log.info("the adapter %s is served from %s", name, path)
        if old:
            await self._retire(old)

    async def unload(self, name: str) -> None:
        """Serve it to nobody from now on; requests that have come before are answered. Raises NotFound."""
        if name not in self._served:
            raise _not_found(name, param="lora_name")
        served = self._served.pop(name)
        log.info("the adapter %s is served no longer", name)
        await self._retire(served)

    def _check_free(self, name: str, setting: str) -> None:
        if name in self:
            raise SettingsError(f"{setting}: the name {name} is that of another model")

    async def _retire(self, served: _Served) -> None:
        served.retired = True
        await asyncio.shield(self._forget(served))

    async def _forget(self, served: _Served) -> None:
        if served.retired and not served.users:
            try:
                await served.backend.engine.unload_adapter(served.adapter)
            except GatewayError as error:  # it takes up room, no more
                log.error("The engine keeps the adapter %s: %s", served.adapter.name, error.message)


def adapters_of(given: Sequence[str]) -> list[Adapter]:
    """Of `lora_modules`, in either of vLLM's forms: NAME=PATH, or JSON with `name` and `path`. Raises SettingsError."""
    adapters: dict[str, Adapter] = {}
    for module in given:
        name, path = _from_json(module) if module.startswith("{") else module.partition("=")[::2]
        if not ADAPTER_NAME.fullmatch(name) or not path:
            raise SettingsError(f"lora_modules: {module} is not NAME=PATH, with letters, digits and . _ : / - in the name")
        if name in adapters:
            raise SettingsError(f"lora_modules: the name {name} is there twice")
        adapters[name] = Adapter(name, str(Path(path).expanduser().absolute()), len(adapters) + 1)
    return list(adapters.values())


def _from_json(module: str) -> tuple[str, str]:
    """Beside name and path vLLM takes `base_model_name`, which says nothing where only one model is served."""
    try:
        given = json.loads(module)
    except ValueError as error:
        raise SettingsError(f"lora_modules: {module} is not JSON: {error}") from error
    if not given.keys() <= {"name", "path", "base_model_name"} or not all(isinstance(given.get(key), str) for key in ("name", "path")):
        raise SettingsError(f"lora_modules: {module} has other fields than `name` and `path`")
    return given["name"], given["path"]


def _not_found(name: str, served: str = "", param: str = "model") -> NotFound:
    return NotFound(f"There is no model {name[:100]!r} here{served}.", param=param, code="model_not_found")
