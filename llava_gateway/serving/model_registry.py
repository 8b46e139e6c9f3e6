"""The models and LoRA adapters that clients may ask for by name.

A model is served under its name and its aliases. An adapter is a model of its own, which is loaded and unloaded while requests run.
"""

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

from llava_gateway.auth.rate_limits import current_lease
from llava_gateway.engine.supervisor import Supervisor
from llava_gateway.errors import EngineStartError, GatewayError, InvalidRequest, NotFound, Unavailable
from llava_gateway.model_info import LoraAdapter, ModelInfo
from llava_gateway.prompts.renderer import PromptRenderer
from llava_gateway.prompts.templates import BUILT_IN, aliases, chosen
from llava_gateway.settings import ImageStartEnd, SettingsError

log = logging.getLogger(__name__)

MAX_LISTED = 20
"""The upper bound of names in an error message."""
MAX_LISTED = 20
"""The upper bound of names in an error message."""
ADAPTER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")


class ServedModel:
    """One model on one engine: its names and its chat templates."""

    def __init__(
        self,
        name: str,
        engine: Supervisor,
        template: str = "",
        more_names: Sequence[str] = (),
        root: str = "",
        *,
        image_start_end: ImageStartEnd = "auto",
    ) -> None:
        """`template`, `more_names`, `image_start_end`: as in the settings `template`, `model_alias` and `image_start_end`.

        `root`: see the attribute. Raises SettingsError.
        """
        self.name = name
        self.root = root or name
        """The model's Hugging Face id or directory, from which a client can load its tokenizer. Default: `name`."""
        self.engine = engine
        self.templates: dict[str, str | None] = {name: None, **aliases(more_names)}
        """The model's names, and the built-in template for each. None: the model's own template."""
        self.created = int(time.time())
        self._template = chosen(template) if template else None
        self._image_start_end = image_start_end
        self._info: ModelInfo | None = None

    async def start(self) -> None:
        """Load the model. Requests are answered 503 until this returns. Raises EngineStartError."""
        start = time.monotonic()
        info = await self.engine.start()
        if not info.chat_template and self._template is None:
            raise EngineStartError(f"{self.name} has no chat template; name one of {', '.join(BUILT_IN)} with --template")
        self.prompts = PromptRenderer(info, self._template, self._image_start_end)
        self._info = info
        least, most = info.vision.min_image_tokens, info.vision.max_image_tokens
        per_image = f"{least} to {most}" if info.vision.grids else str(most)
        log.info("%s is ready after %.1f s: %d tokens of context, %s per image",
                 self.name, time.monotonic() - start, info.context_length, per_image)  # fmt: skip

    def info(self) -> ModelInfo:
        """Return the model's description. Raises Unavailable while the model loads or its engine is dead."""
        self.engine.check()
        if self._info is None:  # the engine lives, but the model's template cannot be used
            raise Unavailable("The model did not load; the server's log says why.", code="model_failed")
        return self._info

    @property
    def context_length(self) -> int | None:
        """The length of the model's context, in tokens. None until the model has loaded."""
        return self._info.context_length if self._info else None

    def check_responsive(self) -> None:
        """Raise Unavailable unless the engine has answered within the last seconds."""
        self.info()
        self.engine.check_responsive()


@dataclass(slots=True)
class _ServedAdapter:
    adapter: LoraAdapter
    served_model: ServedModel
    users: int = 0
    """Requests that use the adapter."""
    retired: bool = False
    """True once the adapter is to be unloaded after its last request."""
    created: int = field(default_factory=lambda: int(time.time()))


class ModelRegistry:
    """Finds models and adapters by name, and loads and unloads adapters. Used from one event loop."""

    def __init__(self, served_models: Sequence[ServedModel]) -> None:
        """Register the models, and the adapters that their engines start with. Raises SettingsError if a name is used twice."""
        self._models: dict[str, ServedModel] = {}
        """By each of their names."""
        self._adapters: dict[str, _ServedAdapter] = {}
        for served_model in served_models:
            for name in served_model.templates:
                self._check_free(name, "served_model_name, model_alias")
                self._models[name] = served_model
        for served_model in served_models:
            for adapter in served_model.engine.adapters:
                self._check_free(adapter.name, "lora_modules")
                self._adapters[adapter.name] = _ServedAdapter(adapter, served_model)
        self._numbers = itertools.count(len(self._adapters) + 1)
        self._loading = asyncio.Lock()

    def __contains__(self, name: str) -> bool:
        return name in self._models or name in self._adapters

    def names(self) -> list[str]:
        """Return the names that this request's API key may use.

        A key that may use a model may use its aliases. The model's adapters are other models.
        """
        lease = current_lease()
        if lease is None:
            return [*self._models, *self._adapters]
        models = [name for name, served_model in self._models.items() if lease.allows(name) or lease.allows(served_model.name)]
        return models + [name for name in self._adapters if lease.allows(name)]

    def only_name(self) -> str:
        """Return the name of the only model that this request's API key may use, for a request that names none.

        Aliases are names of the same model; adapters are other models. Raises InvalidRequest if there are several models.
        """
        names = self.names()
        models = {self._models[name].name if name in self._models else name for name in names}
        if len(models) > 1:
            listed = ", ".join(map(repr, names[:MAX_LISTED]))
            raise InvalidRequest(f"Several models are served; name one of them in the field model: {listed}.", param="model")
        if not names:
            raise _not_found("")
        return names[0]

    def first_served(self, *names: str) -> str:
        """Return the first of these names that is served. If none is served, return the name of the first model."""
        return next((name for name in names if name in self), next(iter(self._models)))

    def check(self, name: str) -> None:
        """Raise NotFound unless `name` is served, and this request's API key may use it."""
        if name not in (names := self.names()):
            raise _not_found(name, f"; {names[0]!r} is served" if names else "")

    def get(self, name: str) -> ServedModel:
        """Return the model that answers under `name`. For an adapter it is the model that the adapter changes. Raises NotFound."""
        if served_model := self._models.get(name):
            return served_model
        if name not in self._adapters:  # it was unloaded meanwhile
            raise _not_found(name)
        return self._adapters[name].served_model

    def template(self, name: str) -> str | None:
        """Return the built-in template for `name`. None: the server's own template."""
        return self._models[name].templates[name] if name in self._models else None

    def created(self, name: str) -> int:
        """Return the Unix time since when `name` is served."""
        return self._adapters[name].created if name in self._adapters else self._models[name].created

    def root(self, name: str) -> str:
        """Return the Hugging Face id or the directory of the model or adapter `name`, as vLLM calls it."""
        return self._adapters[name].adapter.path if name in self._adapters else self._models[name].root

    def parent(self, name: str) -> str | None:
        """Return the name of the model that the adapter `name` changes. None for a model."""
        return self._adapters[name].served_model.name if name in self._adapters else None

    @asynccontextmanager
    async def lora_adapter(self, name: str) -> AsyncIterator[LoraAdapter | None]:
        """Yield the adapter `name`, which stays loaded within the block, or None for a model. Raises NotFound."""
        if name in self._models:
            yield None
            return
        if name not in self._adapters:  # it was unloaded meanwhile
            raise _not_found(name)
        served = self._adapters[name]
        served.users += 1
        try:
            yield served.adapter
        finally:
            served.users -= 1
            await asyncio.shield(self._unload_unused(served))  # even if the client has disconnected

    async def load(self, name: str, path: Path, *, in_place: bool) -> None:
        """Load the adapter in the directory `path` (absolute) into the first model's engine, and serve it as `name`.

        `in_place`: replace an adapter of this name. Requests that already use the old one keep it. Raises GatewayError; nothing has changed
        then.
        """
        async with self._loading:
            if not ADAPTER_NAME.fullmatch(name):
                raise InvalidRequest("An adapter's name has letters, digits and . _ : / -, at most 128.", param="lora_name")
            if name in self._models:
                raise InvalidRequest(f"{name!r} is a name of the model itself.", param="lora_name")
            if name in self._adapters and not in_place:
                raise InvalidRequest(f"There is an adapter {name!r} already; `load_inplace` replaces it.", param="lora_name")
            adapter = LoraAdapter(name, str(path), next(self._numbers))
            served_model = next(iter(self._models.values()))
            await served_model.engine.load_adapter(adapter)
            old = self._adapters.pop(name, None)
            self._adapters[name] = _ServedAdapter(adapter, served_model)
        log.info("the adapter %s is served from %s", name, path)
        if old:
            await self._retire(old)

    async def unload(self, name: str) -> None:
        """Stop serving the adapter `name`. Requests that already use it are answered. Raises NotFound."""
        if name not in self._adapters:
            raise _not_found(name, param="lora_name")
        served = self._adapters.pop(name)
        log.info("the adapter %s is served no longer", name)
        await self._retire(served)

    def _check_free(self, name: str, setting: str) -> None:
        if name in self:
            raise SettingsError(f"{setting}: the name {name} is that of another model")

    async def _retire(self, served: _ServedAdapter) -> None:
        served.retired = True
        await asyncio.shield(self._unload_unused(served))

    async def _unload_unused(self, served: _ServedAdapter) -> None:
        if served.retired and not served.users:
            try:
                await served.served_model.engine.unload_adapter(served.adapter)
            except GatewayError as error:  # the adapter only takes up memory
                log.error("The engine keeps the adapter %s: %s", served.adapter.name, error.message)


def adapters_of(given: Sequence[str]) -> list[LoraAdapter]:
    """Return the adapters of the setting `lora_modules`.

    Each has one of vLLM's two forms: NAME=PATH, or JSON with `name` and `path`. Raises SettingsError.
    """
    adapters: dict[str, LoraAdapter] = {}
    for module in given:
        name, path = _from_json(module) if module.startswith("{") else module.partition("=")[::2]
        if not ADAPTER_NAME.fullmatch(name) or not path:
            raise SettingsError(f"lora_modules: {module} is not NAME=PATH, with letters, digits and . _ : / - in the name")
        if name in adapters:
            raise SettingsError(f"lora_modules: the name {name} is there twice")
        adapters[name] = LoraAdapter(name, str(Path(path).expanduser().absolute()), len(adapters) + 1)
    return list(adapters.values())


def _from_json(module: str) -> tuple[str, str]:
    """Parse vLLM's JSON form. vLLM's field `base_model_name` is ignored: an adapter belongs to the model that is served with it."""
    try:
        given = json.loads(module)
    except ValueError as error:
        raise SettingsError(f"lora_modules: {module} is not JSON: {error}") from error
    if not given.keys() <= {"name", "path", "base_model_name"} or not all(isinstance(given.get(key), str) for key in ("name", "path")):
        raise SettingsError(f"lora_modules: {module} has other fields than `name` and `path`")
    return given["name"], given["path"]


def _not_found(name: str, served: str = "", param: str = "model") -> NotFound:
    return NotFound(f"There is no model {name[:100]!r} here{served}.", param=param, code="model_not_found")
