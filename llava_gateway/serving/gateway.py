"""The way of a request, top to bottom.

    async with gateway.open(request) as answer:
        async for delta in answer: ...
        answer.usage

Entering renders the prompt, checks that it fits, loads the images, takes a place and starts the engine: whatever can be refused is
refused here. Iterating yields deltas. Leaving aborts what still runs, books the usage and frees the place, however it ends.
"""

import asyncio
import dataclasses
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from typing import Any, TypeVar

from llava_gateway.concurrency import end
from llava_gateway.engine.supervisor import Supervisor
from llava_gateway.errors import GatewayError, Unavailable
from llava_gateway.images.loader import ImageFile, ImageLoader
from llava_gateway.observability import metrics
from llava_gateway.observability.context import Call, current, timed
from llava_gateway.serving.admission import Admission, Places
from llava_gateway.serving.answer_memory import AnswerMemory
from llava_gateway.serving.delta_stream import Answer
from llava_gateway.serving.model_registry import Backend, Models
from llava_gateway.serving.prepare import Plan, check_images, make_plan, settle
from llava_gateway.settings import Settings
from llava_gateway.types import ChatRequest, ImageSource, ModelInfo, PreparedImage, Prompt, Request, Usage, Vision

log = logging.getLogger(__name__)

RETRY_AFTER = 5
LONG_TEXT = 16_384
"""Characters that take about 5 ms to tokenize."""
TOKEN_BYTES, LOGPROB_BYTES = 32, 200
"""Most memory of a token of an answer, and of each log probability beside it, with the JSON that is made of them."""

T = TypeVar("T")


class Gateway:
    """Models, each on an engine of its own, and who may have how much of them."""

    def __init__(self, settings: Settings, backends: Sequence[Backend]) -> None:
        """`backends`: the first is meant where a request names no model. Raises SettingsError."""
        self.settings = settings
        self.models = Models(backends)
        self.model_name = backends[0].name
        self._places = {backend.name: Places(settings) for backend in backends}
        self.admission = Admission(settings, list(self._places.values()))
        self._images = ImageLoader(settings)
        self.answers = AnswerMemory(settings)
        self._backends = backends
        metrics.watch(self.admission, [backend.engine for backend in backends])

    async def start(self) -> None:
        """Load the models; until one has loaded, requests for it are told to wait. Raises EngineStartError."""
        await asyncio.gather(*(backend.start() for backend in self._backends))

    async def stop(self) -> None:
        await self._images.close()
        await asyncio.gather(*(backend.engine.stop() for backend in self._backends))

    async def drain(self, seconds: float, hurry: asyncio.Event) -> None:
        """Let nobody in, and wait until all answers have left; those that have not after so many seconds, or when told to hurry, are
        cut off with an error."""
        self.admission.close(Unavailable("The server is shutting down.", code="shutting_down", retry_after=RETRY_AFTER))
        deadline = time.monotonic() + seconds
        hurried = asyncio.create_task(hurry.wait())
        while self.admission.inside and time.monotonic() < deadline and not hurried.done():
            await asyncio.wait((hurried,), timeout=0.05)
        hurried.cancel()
        if self.admission.inside:
            log.warning("%d requests are cut off", self.admission.inside)
        why = "The server is shutting down; this request was cut off."
        self.admission.cut(Unavailable(why, code="shutting_down", retry_after=RETRY_AFTER))

    def check_ready(self) -> None:
        """Whether a request would be answered: an engine has answered lately, and admission is open. Raises GatewayError."""
        failures = [failure for backend in self._backends if (failure := _failure(backend))]
        if len(failures) == len(self._backends):
            raise failures[0]
        self.admission.check_open()

    async def tokenize(self, request: Request) -> tuple[list[int], int]:
        """The token ids that the engine would read, each image at its full length, and how many of them are images'. Images are loaded if
        their sizes matter, else not even fetched. Raises GatewayError."""
        backend = self.models.backend(request.model)
        model = backend.loaded()
        vision = model.vision
        check_images(request, model)
        prompt = await _off_loop_if_long(request, backend.prompts.render, request, self._template_of(request))
        images = await self._load(request, vision) if vision.grids else ()
        counts = [image.tokens for image in images] or [vision.fewest] * len(request.images)
        return await _off_loop_if_long(request, backend.prompts.expand, prompt.token_ids, counts), sum(counts)

    @asynccontextmanager
    async def open(self, request: Request) -> AsyncIterator[Answer]:
        """Raises GatewayError for everything that can be refused. Comes back with the first delta, or without it if a stream has been
        silent for `keep_alive` seconds: by then the engine has taken the request."""
        (plan,) = await self.plan(request)
        async with self.answer(plan) as answer:
            yield answer

    async def plan(self, *requests: Request) -> list[Plan]:
        """What the engine is to do for these, of which all are wanted. Refuses what can be refused without images and without a place.
        Raises GatewayError."""
        with timed("prompt"):
            plans: list[Plan] = []
            for request in requests:
                if plans:
                    await asyncio.sleep(0)
                plans.append(await self._plan(request))
        if caller := current().caller:
            plans = [dataclasses.replace(plan, reserved=plan.most_tokens) for plan in plans]
            await caller.reserve(sum(plan.tokens for plan in plans), sum(plan.reserved for plan in plans), answers=len(plans))
        for engine, structure in {(self._engine(plan), plan.sampling.structure) for plan in plans}:
            if structure:
                await engine.check_structure(structure)
        return plans

    @asynccontextmanager
    async def answer(self, plan: Plan) -> AsyncIterator[Answer]:
        """As `open`."""
        call, usage, request = current(), Usage(), plan.request
        async with AsyncExitStack() as stack:
            adapter = await stack.enter_async_context(self.models.used(request.model))
            images = await self._load(request, plan.model.vision)
            settled = settle(plan, images, self.settings.default_max_tokens)
            if call.caller and (more := settled.most_tokens - plan.reserved) > 0:
                await call.caller.reserve(min(settled.tokens - plan.tokens, more), more)
            plan = settled
            with timed("queue"):
                await stack.enter_async_context(self._places[self.models.backend(request.model).name].slot(plan.tokens))
            stack.enter_context(self.answers.reserved(_most_bytes(plan)))
            with timed("answer"):
                stack.push_async_callback(_book, call, usage)
                answer = Answer(plan.prompt, request, usage)
                prompt = Prompt(plan.token_ids, images, adapter)
                work = asyncio.create_task(
                    self._engine(plan).generate(prompt, plan.sampling, stream=request.stream, usage=usage, take=answer.give)
                )
                work.add_done_callback(answer.end)
                stack.push_async_callback(end, work)
                with timed("first_token") if request.stream else nullcontext():
                    await answer.begin(self.settings.keep_alive if request.stream else None)
                yield answer

    async def _load(self, request: Request, vision: Vision) -> tuple[PreparedImage, ...]:
        if not request.images:
            return ()
        with timed("images"):
            return await self._images.load(request.images, vision, request.image_aspect_ratio)

    async def image_files(self, model: str, images: Sequence[ImageSource]) -> tuple[ImageFile, ...]:
        """The images of a request as they came, under the rules for those that this model is shown. Raises GatewayError."""
        vision = self.model(model).vision
        with timed("images"):
            return await self._images.files(images, vision)

    def model(self, name: str) -> ModelInfo:
        """The model of this name. Raises NotFound, or Unavailable while it loads."""
        self.models.check(name)
        backend = self.models.backend(name)
        current().model = name if self.models.parent(name) else backend.name
        return backend.loaded()

    async def _plan(self, request: Request) -> Plan:
        model, prompts = self.model(request.model), self.models.backend(request.model).prompts
        template, default = self._template_of(request), self.settings.default_max_tokens
        return await _off_loop_if_long(request, make_plan, request, model, prompts, template, default)

    def _engine(self, plan: Plan) -> Supervisor:
        return self.models.backend(plan.request.model).engine

    def _template_of(self, request: Request) -> str | None:
        """The name of the built-in template that this request is to have; None: the server's own."""
        return (request.template if isinstance(request, ChatRequest) else None) or self.models.template(request.model)


async def _off_loop_if_long(request: Request, work: Callable[..., T], *arguments: Any) -> T:
    """What is done with a long text takes long, and lets others run meanwhile. For a short one a thread costs more."""
    if request.text_length > LONG_TEXT:
        return await asyncio.to_thread(work, *arguments)
    return work(*arguments)


def _failure(backend: Backend) -> GatewayError | None:
    try:
        backend.check_lately()
    except GatewayError as error:
        return error
    return None


def _most_bytes(plan: Plan) -> int:
    """Memory that the answer may take until it has left."""
    logprobs = 0 if plan.sampling.logprobs is None else plan.sampling.logprobs + 1
    return plan.request.sampling.n * (plan.sampling.max_tokens or 0) * (TOKEN_BYTES + LOGPROB_BYTES * logprobs)


async def _book(call: Call, usage: Usage) -> None:
    call.usage.add(usage)
    if call.caller:
        await call.caller.book(usage.prompt_tokens + usage.completion_tokens)
