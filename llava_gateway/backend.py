"""One model on one engine: what it is called, and what its chats look like to it."""

import logging
import time
from collections.abc import Sequence

from llava_gateway.engine import EngineStartError, ModelInfo
from llava_gateway.engine.supervisor import Supervisor
from llava_gateway.errors import Unavailable
from llava_gateway.prompt import PromptRenderer
from llava_gateway.templates import BUILT_IN, aliases, chosen

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
