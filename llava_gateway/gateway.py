"""The way of a request, top to bottom.

    async with gateway.open(request) as answer:
        async for delta in answer: ...
        answer.usage

Entering takes a place, loads the images, renders the prompt, checks that it fits and starts the engine: whatever can be refused is
refused here. Iterating yields deltas. Leaving aborts what still runs, books the usage and frees the place, however it ends.
"""

import dataclasses
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, nullcontext

from llava_gateway import metrics
from llava_gateway.admission import Admission
from llava_gateway.chat import ChatRequest, Delta, ImageUrl, Sampling, Usage
from llava_gateway.engine import Engine, ModelInfo, Prompt
from llava_gateway.errors import ContextLengthExceeded, EngineFailed, NotFound, Unavailable
from llava_gateway.images.loader import ImageLoader
from llava_gateway.prompt import PromptRenderer
from llava_gateway.settings import Settings

log = logging.getLogger(__name__)


class Answer:
    """The deltas of one request, and what it has used so far."""

    def __init__(self, deltas: AsyncIterator[Delta], usage: Usage) -> None:
        self._deltas = deltas
        self.usage = usage

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self._deltas


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

    @asynccontextmanager
    async def open(self, request: ChatRequest) -> AsyncIterator[Answer]:
        """Raises GatewayError for everything that can be refused."""
        model = self._ready(request)
        urls = _images(request, model)
        usage = Usage()
        async with AsyncExitStack() as stack:
            with metrics.stage("queue"):
                await stack.enter_async_context(self._admission.slot())
            with metrics.stage("images"):
                images = await self._images.load(urls)
            with metrics.stage("prompt"):
                prompt = Prompt(self._prompts.render(request.messages).token_ids, images)
                sampling = self._fit(request.sampling, prompt, model)
            with metrics.stage("answer"):
                deltas = self._engine.generate(prompt, sampling, stream=request.stream, usage=usage)
                stack.callback(metrics.count_usage, usage)
                await stack.enter_async_context(aclosing(deltas))
                with metrics.stage("first_token") if request.stream else nullcontext():
                    first = await anext(deltas, None)
                if first is None:
                    raise EngineFailed("The engine ended this request without an answer.")
                yield Answer(_choices(first, deltas, request.sampling, usage), usage)

    def _ready(self, request: ChatRequest) -> ModelInfo:
        if request.model != self.model_name:
            raise NotFound(
                f"There is no model {request.model!r} here; {self.model_name!r} is served.", param="model", code="model_not_found"
            )
        return self._loaded()

    def _loaded(self) -> ModelInfo:
        if self._failed:
            raise Unavailable("The model did not load; the server's log says why.", code="model_failed")
        if self._model is None:
            raise Unavailable("The model is still loading. Try again in a few seconds.", code="model_loading", retry_after=3)
        return self._model

    def _fit(self, sampling: Sampling, prompt: Prompt, model: ModelInfo) -> Sampling:
        """The sampling that the engine gets: its answer fits the context beside the prompt, and greedy choices are drawn once."""
        image_tokens = len(prompt.images) * model.image_tokens
        text_tokens = len(prompt.token_ids) - len(prompt.images)
        room = model.context_length - text_tokens - image_tokens
        wanted = sampling.max_tokens or 1
        if wanted > room:
            raise ContextLengthExceeded(
                f"The model's context is {model.context_length} tokens, and this request asks for {text_tokens + image_tokens + wanted}: "
                f"{text_tokens} of text, {image_tokens} of images ({len(prompt.images)} x {model.image_tokens}) and {wanted} of answer.",
                param="messages",
            )
        max_tokens = sampling.max_tokens or min(room, self.settings.default_max_tokens)
        return dataclasses.replace(sampling, max_tokens=max_tokens, n=1 if sampling.temperature == 0 else sampling.n)


def _images(request: ChatRequest, model: ModelInfo) -> list[ImageUrl]:
    """The request's images in order. ContextLengthExceeded if there are too many, before any is fetched."""
    images = [part for message in request.messages for part in message.content if isinstance(part, ImageUrl)]
    if len(images) * model.image_tokens >= model.context_length:
        raise ContextLengthExceeded(
            f"{len(images)} images take {len(images) * model.image_tokens} tokens; the model's context is {model.context_length}, "
            f"so at most {(model.context_length - 1) // model.image_tokens} images fit.",
            param="messages",
        )
    return images


async def _choices(first: Delta, rest: AsyncGenerator[Delta], asked: Sampling, usage: Usage) -> AsyncIterator[Delta]:
    """Deltas as the client sees them. The space between `ASSISTANT:` and the answer is the template's, which writes it again when the
    answer comes back in the next turn; and n greedy choices are one, n times."""
    copies = asked.n if asked.temperature == 0 else 1
    begun: set[int] = set()
    delta: Delta | None = first
    while delta is not None:
        if delta.text and delta.index not in begun:
            begun.add(delta.index)
            delta = dataclasses.replace(delta, text=delta.text.removeprefix(" "))
        yield delta
        for copy in range(1, copies):
            usage.completion_tokens += delta.tokens
            yield dataclasses.replace(delta, index=copy)
        delta = await anext(rest, None)
