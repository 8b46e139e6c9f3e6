"""The way of a request, top to bottom.

    async with gateway.open(request) as answer:
        async for delta in answer: ...
        answer.usage

Entering renders the prompt, checks that it fits, takes a place, loads the images and starts the engine: whatever can be refused is
refused here. Iterating yields deltas. Leaving aborts what still runs, books the usage and frees the place, however it ends.
"""

import asyncio
import dataclasses
import logging
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, nullcontext
from typing import Any

from llava_gateway import metrics
from llava_gateway.admission import Admission
from llava_gateway.answer import Answer, choices, first_delta
from llava_gateway.chat import ChatRequest, Request, Sampling, Usage
from llava_gateway.engine import Engine, ModelInfo, Prompt
from llava_gateway.errors import ContextLengthExceeded, InvalidRequest, NotFound, Unavailable
from llava_gateway.images.loader import ImageLoader
from llava_gateway.prompt import PromptRenderer
from llava_gateway.settings import Settings
from llava_gateway.vocabulary import Vocabulary

log = logging.getLogger(__name__)


class Gateway:
    """One model on one engine."""

    def __init__(self, settings: Settings, engine: Engine, model_name: str) -> None:
        self.settings = settings
        self.model_name = model_name
        self.created = int(time.time())
        self._engine = engine
        self._admission = Admission(settings.max_running, settings.max_queued)
        self._model: ModelInfo | None = None
        self._failed = False
        metrics.RUNNING.set_function(lambda: self._admission.running)
        metrics.QUEUED.set_function(lambda: self._admission.queued)

    async def start(self) -> None:
        """Load the model; until this returns, requests are told to wait. Raises EngineStartError."""
        start = time.monotonic()
        try:
            model = await self._engine.start()
            self._prompts = PromptRenderer(model)
        except Exception:
            self._failed = True
            raise
        self._images = ImageLoader(self.settings, model.image_side)
        self._model = model
        log.info("%s is ready after %.1f s: %d tokens of context, %d per image",
                 self.model_name, time.monotonic() - start, model.context_length, model.image_tokens)  # fmt: skip

    async def stop(self) -> None:
        if self._model is not None:
            await self._images.close()
        await self._engine.stop()

    async def check(self) -> None:
        """Whether the engine answers now. Raises Unavailable."""
        self._loaded()
        await self._engine.check(timeout=5)

    def tokenize(self, request: Request) -> list[int]:
        """The token ids that the engine would read, each image at its full length. No image is fetched. Raises GatewayError."""
        model = self.model(request.model)
        spread = []
        for token_id in self._prompts.render(request):
            spread += [token_id] * (model.image_tokens if token_id == self._prompts.image_id else 1)
        return spread

    def check_fits(self, request: Request) -> None:
        """Refuse what `open` would refuse of the prompt and the sampling, without a place and without images."""
        self._plan(request)

    @asynccontextmanager
    async def open(self, request: Request) -> AsyncIterator[Answer]:
        """Raises GatewayError for everything that can be refused. Comes back with the first delta, or without it if a stream has been
        silent for `keep_alive` seconds: by then the engine has taken the request."""
        async with AsyncExitStack() as stack:
            with metrics.stage("prompt"):
                token_ids, sampling = self._plan(request)
            with metrics.stage("queue"):
                await stack.enter_async_context(self._admission.slot())
            if sampling.structure:
                await self._engine.check_structure(sampling.structure)
            with metrics.stage("images"):
                images = await self._images.load(request.images, request.image_aspect_ratio)
            with metrics.stage("answer"):
                usage = Usage()
                stack.callback(metrics.count_usage, usage)
                deltas = self._engine.generate(Prompt(token_ids, images), sampling, stream=request.stream, usage=usage)
                await stack.enter_async_context(aclosing(deltas))
                first = asyncio.create_task(first_delta(deltas))
                stack.push_async_callback(_cancel, first)
                with metrics.stage("first_token") if request.stream else nullcontext():
                    await asyncio.wait((first,), timeout=self.settings.keep_alive if request.stream else None)
                if first.done():
                    first.result()
                yield Answer(choices(first, deltas, request, usage), usage)

    def check_name(self, name: str) -> None:
        """Raises NotFound unless the model of this name is served here."""
        if name != self.model_name:
            raise NotFound(f"There is no model {name[:100]!r} here; {self.model_name!r} is served.", param="model", code="model_not_found")

    def model(self, name: str) -> ModelInfo:
        """The model of this name. Raises NotFound, or Unavailable while it loads."""
        self.check_name(name)
        return self._loaded()

    def _loaded(self) -> ModelInfo:
        if self._failed:
            raise Unavailable("The model did not load; the server's log says why.", code="model_failed")
        if self._model is None:
            raise Unavailable("The model is still loading. Try again in a few seconds.", code="model_loading", retry_after=3)
        return self._model

    @staticmethod
    def _check_tokens(asked: Sampling, vocabulary: Vocabulary) -> None:
        vocabulary.check(asked.allowed_token_ids or (), "allowed_token_ids")
        vocabulary.check(asked.stop_token_ids, "stop_token_ids")
        for token_id in asked.logit_bias:
            if token_id >= vocabulary.size:
                raise vocabulary.refusal(token_id, f"logit_bias.{token_id}")

    def _plan(self, request: Request) -> tuple[list[int], Sampling]:
        """What the engine gets: the prompt's token ids, and a sampling whose answer fits the context beside them."""
        model, asked = self.model(request.model), request.sampling
        images = len(request.images)
        if images * model.image_tokens >= model.context_length:
            raise ContextLengthExceeded(
                f"{images} images take {images * model.image_tokens} tokens; the model's context is {model.context_length}, "
                f"so at most {(model.context_length - 1) // model.image_tokens} images fit.",
                param=_param(request),
            )
        token_ids = self._prompts.render(request)
        image_tokens, text_tokens = images * model.image_tokens, len(token_ids) - images
        room = model.context_length - text_tokens - image_tokens
        wanted = asked.max_tokens or max(asked.min_tokens, 1)
        if wanted > room:
            raise ContextLengthExceeded(
                f"The model's context is {model.context_length} tokens, and this request asks for {text_tokens + image_tokens + wanted}: "
                f"{text_tokens} of text, {image_tokens} of images ({images} x {model.image_tokens}) and {wanted} of answer.",
                param=_param(request),
            )
        max_tokens = asked.max_tokens or min(room, max(self.settings.default_max_tokens, asked.min_tokens))
        if asked.min_tokens > max_tokens:
            raise InvalidRequest(f"min_tokens is {asked.min_tokens}, more than max_tokens, {max_tokens}.", param="min_tokens")
        self._check_tokens(asked, model.vocabulary)
        return token_ids, dataclasses.replace(asked, max_tokens=max_tokens, n=1 if asked.temperature == 0 else asked.n)


def _param(request: Request) -> str:
    return "messages" if isinstance(request, ChatRequest) else request.param


async def _cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait((task,))
