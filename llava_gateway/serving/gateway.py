"""The flow of a request, top to bottom.

    async with gateway.open(request) as deltas:
        async for delta in deltas: ...
        deltas.usage

Entering renders the prompt, checks that it fits the context, loads the images and videos, waits for a slot and starts the engine.
Everything that can be refused is refused there: every 4xx, 429 and 503. Iterating yields deltas. Leaving aborts a request that still runs,
records its usage and frees its slot, exactly once, however the block ends.
"""

import asyncio
import dataclasses
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from typing import Any, TypeVar

from llava_gateway.auth.rate_limits import KeyLease, current_lease
from llava_gateway.concurrency import cancel_and_wait
from llava_gateway.errors import GatewayError, InvalidImage, Unavailable
from llava_gateway.images.loader import ImageFile, ImageLoader
from llava_gateway.model_info import ModelInfo
from llava_gateway.observability import metrics
from llava_gateway.observability.context import RequestContext, current_context, timed
from llava_gateway.prompts.answer_tokens import AnswerTokens
from llava_gateway.serving.admission import Admission, RequestQueue
from llava_gateway.serving.answer_memory import AnswerMemory
from llava_gateway.serving.delta_stream import DeltaStream
from llava_gateway.serving.model_registry import ModelRegistry, ServedModel
from llava_gateway.serving.prepare import (
    PreparedMedia,
    PreparedRequest,
    apply_media_tokens,
    can_choose_tools,
    check_media,
    prepare,
    without_ignored_tools,
)
from llava_gateway.settings import AspectRatio, Settings, SettingsError
from llava_gateway.storage.file_store import FileStore
from llava_gateway.storage.object_store import create_object_store
from llava_gateway.types import ChatRequest, ImageSource, PreparedImage, PreparedVideo, Prompt, Request, Usage, VideoUrl
from llava_gateway.videos.loader import VideoLoader

log = logging.getLogger(__name__)

RETRY_AFTER = 5
LONG_TEXT = 16_384
"""Characters that take about 5 ms to tokenize."""
TOKEN_BYTES, LOGPROB_BYTES = 32, 200
"""Upper bounds of the memory for one token of an answer and for each log probability beside it, rendered JSON included."""

T = TypeVar("T")


class Gateway:
    """The served models, each on an engine of its own, with their queues, images and limits. Used from one event loop."""

    def __init__(self, settings: Settings, served_models: Sequence[ServedModel]) -> None:
        """Create the gateway; `start` loads the models.

        `served_models`: a request that names no model goes to the first. Raises SettingsError.
        """
        self.settings = settings
        self.models = ModelRegistry(served_models)
        self.model_name = served_models[0].name
        self._queues = {served_model.name: RequestQueue(settings) for served_model in served_models}
        self.admission = Admission(settings, list(self._queues.values()))
        try:
            self.files = FileStore(settings)
            self.responses = create_object_store(
                settings.state,
                "responses",
                max_bytes=settings.responses_mb << 20,
                max_bytes_per_owner=settings.responses_mb_per_key << 20,
                ttl=settings.responses_ttl,
                evict=True,
            )
            """Answers that clients continue in later requests, by the name of the API key."""
        except ValueError as error:
            raise SettingsError(str(error)) from error
        self._images = ImageLoader(settings, self._read_file)
        self._videos = VideoLoader(settings, self._images)
        self.answer_memory = AnswerMemory(settings)
        self._served_models = served_models
        engines = [served_model.engine for served_model in served_models]
        metrics.watch(
            running=lambda: self.admission.running,
            queued=lambda: self.admission.queued,
            in_flight=lambda: self.admission.in_flight,
            engine_restarts=lambda: sum(engine.restarts for engine in engines),
            engine_up=lambda: all(engine.is_responsive for engine in engines),
        )

    async def start(self) -> None:
        """Load the models. Requests for a model are answered 503 until it has loaded. Raises EngineStartError."""
        await asyncio.gather(*(served_model.start() for served_model in self._served_models))

    async def stop(self) -> None:
        """End the workers that decode images and videos, and the engines."""
        await self._videos.close()
        await self._images.close()
        await self.responses.close()
        await self.files.close()
        await asyncio.gather(*(served_model.engine.stop() for served_model in self._served_models))

    async def drain(self, seconds: float, hurry: asyncio.Event) -> None:
        """Refuse new requests and wait for the running ones.

        After `seconds`, or when `hurry` is set, the requests that still run are aborted with an error.
        """
        self.admission.close(Unavailable("The server is shutting down.", code="shutting_down", retry_after=RETRY_AFTER))
        deadline = time.monotonic() + seconds
        hurried = asyncio.create_task(hurry.wait())
        while self.admission.in_flight and time.monotonic() < deadline and not hurried.done():
            await asyncio.wait((hurried,), timeout=0.05)
        hurried.cancel()
        if self.admission.in_flight:
            log.warning("%d requests are cut off", self.admission.in_flight)
        why = "The server is shutting down; this request was cut off."
        self.admission.abort_all(Unavailable(why, code="shutting_down", retry_after=RETRY_AFTER))

    def check_ready(self) -> None:
        """Raise GatewayError unless one engine has answered recently and admission is open."""
        failures = [failure for served_model in self._served_models if (failure := _failure(served_model))]
        if len(failures) == len(self._served_models):
            raise failures[0]
        self.admission.check_open()

    async def tokenize(self, request: Request) -> tuple[list[int], int, int]:
        """Return the token ids that the engine would read, with each image and video at its full length, and the numbers of image tokens
        and of video tokens.

        Videos are loaded, and images only if the model's token count depends on their sizes. Raises GatewayError.
        """
        served_model = self.models.get(request.model)
        model = served_model.info()
        check_media(request, model)
        template = self._template_of(request)
        request = without_ignored_tools(request, served_model.prompts, template, self.settings)
        prompt = await _off_loop_if_long(request, served_model.prompts.render, request, template)
        images = await self._load_images(request.images, model, request.image_aspect_ratio) if model.vision.grids else ()
        media = PreparedMedia(images, await self._load_videos(request.videos, model))
        image_tokens, video_tokens = media.image_tokens or [model.vision.min_image_tokens] * len(request.images), media.video_tokens
        token_ids = await _off_loop_if_long(request, served_model.prompts.expand, prompt.token_ids, image_tokens, video_tokens)
        return token_ids, sum(image_tokens), sum(video_tokens)

    @asynccontextmanager
    async def open(self, request: Request) -> AsyncIterator[DeltaStream]:
        """Start a request and yield its deltas.

        The block begins with the first delta. A stream that has been silent for `keep_alive` seconds begins without one: the engine has
        accepted the request by then. Raises GatewayError for everything that can be refused.

            async with gateway.open(ChatRequest(model="llava-demo", messages=messages, stream=True)) as deltas:
                async for delta in deltas:
                    print(delta.text, end="")
        """
        (prepared,) = await self.prepare(request)
        async with self.open_prepared(prepared) as deltas:
            yield deltas

    async def prepare(self, *requests: Request) -> list[PreparedRequest]:
        """Render the prompts of requests that belong together, and reserve their tokens at the API key's limit.

        Everything that can be refused without images, videos and a slot is refused here. Raises GatewayError.
        """
        with timed("prompt"):
            prepared: list[PreparedRequest] = []
            for request in requests:
                if prepared:
                    await asyncio.sleep(0)
                prepared.append(await self._prepare(request))
                self.answer_memory.check(_max_answer_bytes(prepared[-1]))
        if lease := current_lease():
            prepared = [dataclasses.replace(each, reserved=each.max_total_tokens) for each in prepared]
            await lease.reserve(sum(each.tokens for each in prepared), sum(each.reserved for each in prepared), answers=len(prepared))
        for engine, structured_output in {(each.served_model.engine, each.sampling.structured_output) for each in prepared}:
            if structured_output:
                await engine.check_structured_output(structured_output)
        return prepared

    async def load_media(self, *prepared: PreparedRequest) -> list[PreparedMedia]:
        """Load the images and videos of requests to one model that belong together, and return those of each request.

        An image or a video that several requests share is loaded once. Raises GatewayError.
        """
        model, aspect_ratio = prepared[0].model, prepared[0].request.image_aspect_ratio
        images = {id(image): image for each in prepared for image in each.request.images}
        videos = {id(video): video for each in prepared for video in each.request.videos}
        by_image = dict(zip(images, await self._load_images(tuple(images.values()), model, aspect_ratio), strict=True))
        by_video = dict(zip(videos, await self._load_videos(tuple(videos.values()), model), strict=True))
        return [
            PreparedMedia(
                tuple(by_image[id(image)] for image in each.request.images), tuple(by_video[id(video)] for video in each.request.videos)
            )
            for each in prepared
        ]

    @asynccontextmanager
    async def open_prepared(self, prepared: PreparedRequest, media: PreparedMedia | None = None) -> AsyncIterator[DeltaStream]:
        """Like `open`, for a request that `prepare` has returned. `media`: from `load_media`; None: images and videos are loaded here."""
        context, lease, usage, request = current_context(), current_lease(), Usage(), prepared.request
        served_model = prepared.served_model
        async with AsyncExitStack() as stack:
            adapter = await stack.enter_async_context(self.models.lora_adapter(request.model))
            if media is None:
                (media,) = await self.load_media(prepared)
            reserved = prepared
            prepared = apply_media_tokens(prepared, media, self.settings.default_max_tokens)
            if lease and (more := prepared.max_total_tokens - reserved.reserved) > 0:
                await lease.reserve(min(prepared.tokens - reserved.tokens, more), more)
            with timed("queue"):
                await stack.enter_async_context(self._queues[served_model.name].slot(prepared.tokens))
            stack.enter_context(self.answer_memory.reserved(_max_answer_bytes(prepared)))
            with timed("answer"):
                stack.push_async_callback(_record_usage, context, lease, usage)
                deltas = DeltaStream(prepared, usage, _prompt_token_ids(prepared, media))
                prompt = Prompt(prepared.token_ids, media.images, adapter, request.cache_salt, media.videos)
                generation = asyncio.create_task(
                    served_model.engine.generate(
                        prompt, prepared.sampling, stream=request.stream, usage=usage, on_delta=deltas.push, on_text=deltas.push_text
                    )
                )
                generation.add_done_callback(deltas.end)
                stack.push_async_callback(cancel_and_wait, generation)
                with timed("first_token") if request.stream else nullcontext():
                    await deltas.wait_first_delta(self.settings.keep_alive if request.stream else None)
                yield deltas

    async def image_files(self, model: str, images: Sequence[ImageSource]) -> tuple[ImageFile, ...]:
        """Return the image files as the client sent them, checked like the images of a request to `model`. Raises GatewayError."""
        vision = self.model(model).vision
        with timed("images"):
            return await self._images.files(images, vision)

    async def check_image_file(self, data: bytes, *, param: str) -> str:
        """Check an uploaded image file like the images of a request to the first model.

        Returns its media type. Raises InvalidImage with `param`, and Unavailable while the model loads.
        """
        vision = self._served_models[0].info().vision
        try:
            with timed("images"):
                return f"image/{await self._images.check_file(data, vision)}"
        except InvalidImage as error:
            raise InvalidImage(error.message, param=param, code=error.code) from error

    async def _read_file(self, file_id: str) -> bytes | None:
        return await self.files.content(current_context().key_name, file_id)

    def answer_tokens(self, model: str) -> AnswerTokens:
        """Return the tokens with which the answers of the model that clients call `model` begin. Raises as `model`."""
        served_model = self._loaded_model(model)
        return served_model.prompts.answer_tokens(self.models.template(model))

    def chat_template(self, model: str) -> str:
        """Return the Jinja source of the chat template of the model that clients call `model`. Raises as `model`."""
        served_model = self._loaded_model(model)
        return served_model.prompts.source(self.models.template(model))

    def can_choose_tools(self, model: str) -> bool:
        """Return whether the model that clients call `model` may choose to call tools. Raises as `model`."""
        served_model = self._loaded_model(model)
        return can_choose_tools(served_model.prompts, self.models.template(model), self.settings)

    def model(self, name: str) -> ModelInfo:
        """Return the description of the model that clients call `name`. Raises NotFound, or Unavailable while the model loads."""
        return self._served_model(name).info()

    def _loaded_model(self, name: str) -> ServedModel:
        """Return the model that clients call `name`, whose prompts can be rendered. Raises as `model`."""
        served_model = self._served_model(name)
        served_model.info()
        return served_model

    def _served_model(self, name: str) -> ServedModel:
        self.models.check(name)
        served_model = self.models.get(name)
        current_context().model = name if self.models.parent(name) else served_model.name
        return served_model

    async def _prepare(self, request: Request) -> PreparedRequest:
        served_model = self._served_model(request.model)
        template = self._template_of(request)
        return await _off_loop_if_long(request, prepare, request, served_model, served_model.info(), template, self.settings)

    async def _load_images(
        self, images: Sequence[ImageSource], model: ModelInfo, aspect_ratio: AspectRatio | None
    ) -> tuple[PreparedImage, ...]:
        if not images:
            return ()
        with timed("images"):
            return await self._images.load(images, model.vision, aspect_ratio)

    async def _load_videos(self, videos: Sequence[VideoUrl], model: ModelInfo) -> tuple[PreparedVideo, ...]:
        if not videos or not model.video:  # `check_media` has refused videos for a model that takes none
            return ()
        with timed("videos"):
            return await self._videos.load(videos, model.video)

    def _template_of(self, request: Request) -> str | None:
        """Return the name of the built-in template for this request. None: the server's own template."""
        return (request.template if isinstance(request, ChatRequest) else None) or self.models.template(request.model)


async def _off_loop_if_long(request: Request, work: Callable[..., T], *arguments: Any) -> T:
    """Call `work` in a thread if the request's text is long, so that other requests run meanwhile. For a short text a thread costs more."""
    if request.text_length > LONG_TEXT:
        return await asyncio.to_thread(work, *arguments)
    return work(*arguments)


def _failure(served_model: ServedModel) -> GatewayError | None:
    try:
        served_model.check_responsive()
    except GatewayError as error:
        return error
    return None


def _max_answer_bytes(prepared: PreparedRequest) -> int:
    """Return an upper bound of the memory that the answer takes until it is sent."""
    sampling = prepared.sampling
    answer = (sampling.max_tokens or 0) * _token_bytes(sampling.logprobs)
    prompt = 0 if sampling.prompt_logprobs is None else prepared.tokens * _token_bytes(sampling.prompt_logprobs)
    return prepared.request.sampling.n * (answer + prompt)


def _token_bytes(logprobs: int | None) -> int:
    return TOKEN_BYTES + LOGPROB_BYTES * (0 if logprobs is None else logprobs + 1)


def _prompt_token_ids(prepared: PreparedRequest, media: PreparedMedia) -> Sequence[int]:
    """Return the prompt's tokens as the engine reads them, if the answer needs them."""
    sampling = prepared.sampling
    if not sampling.return_token_ids and sampling.prompt_logprobs is None:
        return ()
    return prepared.served_model.prompts.expand(prepared.token_ids, media.image_tokens, media.video_tokens)


async def _record_usage(context: RequestContext, lease: KeyLease | None, usage: Usage) -> None:
    context.usage.add(usage)
    if lease:
        await lease.record_usage(usage.prompt_tokens + usage.completion_tokens)
