"""vLLM as the gateway's engine: its front end (`AsyncLLM`) runs in this process, the model in processes of vLLM's own."""

import asyncio
import dataclasses
import gc
import logging
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from multiprocessing.resource_tracker import ensure_running
from typing import TYPE_CHECKING

import numpy as np
import psutil
from blake3 import blake3
from PIL import Image

from llava_gateway.engine.vllm.compat import health, requests
from llava_gateway.engine.vllm.compat.image_inputs import ImageInputs, UnknownModel
from llava_gateway.engine.vllm.compat.named_tokens import named_tokens_work
from llava_gateway.engine.vllm.compat.seeds import seeds_work
from llava_gateway.engine.vllm.early_process import EarlyProcess
from llava_gateway.engine.vllm.launch import describe, engine_arguments, make_engine, set_environment
from llava_gateway.engine.vllm.lora import LoraManager
from llava_gateway.engine.vllm.outputs import OutputSink, refusal
from llava_gateway.engine.vllm.process_guard import ProcessGuard
from llava_gateway.engine.vllm.sampling import CheckedParams, sampling_params
from llava_gateway.engine.vllm.structured_outputs import GrammarChecker, close_format
from llava_gateway.engine.vllm.unused_modules import unused_modules, without_modules
from llava_gateway.errors import EngineFailed, EngineStartError, GatewayError, InvalidRequest, TooManyRequests, Unavailable
from llava_gateway.model_info import LoraAdapter, ModelInfo
from llava_gateway.observability import metrics
from llava_gateway.observability.context import current_context, new_id
from llava_gateway.types import Delta, PreparedImage, PreparedVideo, Prompt, SamplingParams, StructuredOutput, Usage

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.output_processor import RequestOutputCollector

    from llava_gateway.engine.vllm.compat.output_reader import OutputReader
    from llava_gateway.engine.vllm.compat.request_sender import RequestSender

log = logging.getLogger(__name__)

RETRY_AFTER = 10
STOP_TIMEOUT = 20
"""Seconds that a stop takes at most if the engine is just starting."""
POLL_INTERVAL = 0.25
"""Seconds between two looks at whether the engine has died."""
NOTICE_TIMEOUT = 3
"""Seconds that vLLM's front end may take to notice the death of its engine."""


class VllmEngine:
    """One model on one AsyncLLM. Implements `engine.base.Engine`. Importing vLLM takes seconds, so `start` does it, in a thread."""

    def __init__(
        self, model: str, flags: Sequence[str] = (), *, fast_paths: bool = True, video_frames: int = 32, memory_check: bool = True
    ) -> None:
        """`model`: a directory, or a name on the Hugging Face Hub. `flags`: vLLM's engine flags, as on its command line.

        `fast_paths`: whether our code takes the place of vLLM's where the two do the same and ours needs less CPU time. `video_frames`: the
        most frames of a video. `memory_check`: whether a well-known model of the hub is refused that does not fit into this machine.
        """
        self.model = model
        self.flags = flags
        self._fast_paths = fast_paths
        self._video_frames = video_frames
        self._memory_check = memory_check
        self._engine: AsyncLLM | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")  # for loading, which cannot be interrupted
        self._loading: Future[AsyncLLM] | None = None
        self._stopping = False
        self._generating = 0
        self._grammars: GrammarChecker | None = None
        self._closes_formats = False
        self._lora_manager: LoraManager | None = None
        self._output_reader: OutputReader | None = None
        self._request_sender: RequestSender | None = None
        self._image_inputs: ImageInputs | None = None
        self._checked_params = CheckedParams()
        self._process_guard = ProcessGuard()
        self._processes: list[psutil.Process] = []
        """All processes of the engine that has started. Those of several GPUs outlive a first process that was killed."""
        self.stage = "importing vLLM"

    @property
    def dead(self) -> bool:
        return self._engine is not None and health.is_dead(self._engine)

    async def start(self) -> ModelInfo:
        with _exempt_from_garbage_collection():
            return await self._start()

    async def _start(self) -> ModelInfo:
        self._loading = self._thread.submit(self._load)
        loading = asyncio.wrap_future(self._loading)
        loading.add_done_callback(lambda done: done.cancelled() or done.exception())  # marks the error as retrieved
        while not loading.done():
            await asyncio.wait((loading,), timeout=0.5)
            self._processes = health.engine_processes()
            self._process_guard.watch([process.pid for process in self._processes])
        self._engine = engine = loading.result()
        self._model = info = describe(engine, self._video_frames)
        self._lora_manager = LoraManager(engine)
        await self._choose_paths(engine, info)
        self._seeds_work = seeds_work(engine.vllm_config)
        self._named_tokens_work = named_tokens_work(engine.vllm_config)
        formats = engine.vllm_config.structured_outputs_config
        if formats.backend == "guidance":  # the checker knows no other backend
            self._grammars = GrammarChecker(info.tokenizer, any_whitespace=not formats.disable_any_whitespace)
            self._closes_formats = formats.disable_additional_properties
        self.stage = "answering for the first time"
        await self._warm_up(info)
        return info

    async def _warm_up(self, info: ModelInfo) -> None:
        """Answer a request with one image. vLLM creates some objects at their first use, and no client should wait for them."""
        prompt = _warm_up_prompt(info)
        tokens = sum(image.tokens for image in prompt.images) + sum(video.tokens for video in prompt.videos)
        if tokens + 2 > info.context_length:
            return
        try:
            answer_format = StructuredOutput("json_object") if self._grammars else None  # vLLM imports its backends at the first one
            sampling = SamplingParams(max_tokens=1, logprobs=0, structured_output=answer_format)
            await self.generate(prompt, sampling, stream=False, usage=Usage(), on_delta=lambda delta: None)
        except GatewayError as error:
            raise EngineStartError(f"{self.model} does not answer: {error.message}") from error

    async def _choose_paths(self, engine: "AsyncLLM", info: ModelInfo) -> None:
        """Use our own code for tokens and for images where it suits this engine, and say in the log which way is used."""
        off = None if self._fast_paths else "the setting fast_paths is off"
        _note_path("tokens", off or await self._make_output_reader(engine, info))
        if info.takes_images:
            _note_path("images", off or await self._make_image_inputs(engine, info))

    async def _make_output_reader(self, engine: "AsyncLLM", info: ModelInfo) -> str | None:
        """Use our own code for tokens if it knows this engine and this tokenizer. Return why not, or None."""
        from llava_gateway.engine.vllm.compat import output_reader, request_sender

        if reason := output_reader.why_unsupported(engine):
            return reason
        try:
            texts = await asyncio.to_thread(info.tokenizer.token_texts)
        except Exception as error:  # any error: the tokenizer is of an unknown kind
            return f"the texts of the tokenizer's tokens cannot be read: {error!r}"
        self._output_reader = output_reader.OutputReader(engine, texts)
        self._request_sender = request_sender.RequestSender(engine)
        return None

    async def _make_image_inputs(self, engine: "AsyncLLM", info: ModelInfo) -> str | None:
        """Use our own code for images if it makes the same input as vLLM's renderer. Return why not, or None."""
        token_ids, side = info.tokenizer.encode(2 * info.image_token, add_special_tokens=True).ids, info.vision.side
        try:
            self._image_inputs = ImageInputs(engine)
            await self._image_inputs.check(token_ids, side, info.vision.tokens(side, side))
        except Exception as error:  # any error: this vLLM differs from the known one
            self._close_image_inputs()
            return str(error) if isinstance(error, UnknownModel) else repr(error)
        return None

    def _close_image_inputs(self) -> None:
        if self._image_inputs:
            self._image_inputs.close()
            self._image_inputs = None

    async def check_structured_output(self, structured_output: StructuredOutput) -> None:
        if self._grammars:
            await self._grammars.check(self._closed(structured_output))

    async def load_adapter(self, adapter: LoraAdapter) -> None:
        await self._running_lora_manager().load(adapter)

    async def unload_adapter(self, adapter: LoraAdapter) -> None:
        await self._running_lora_manager().unload(adapter)

    async def generate(
        self,
        prompt: Prompt,
        sampling: SamplingParams,
        *,
        stream: bool,
        usage: Usage,
        on_delta: Callable[[Delta], None],
        on_text: Callable[[str, int], None] | None = None,
    ) -> None:
        from vllm.exceptions import GracefulHTTPError, RetryableRequestError, VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError

        if self._engine is None:
            raise _not_running()
        self._generating += 1
        try:
            if sampling.structured_output:
                sampling = dataclasses.replace(sampling, structured_output=self._closed(sampling.structured_output))
            if sampling.logprob_token_ids and not self._named_tokens_work:
                raise InvalidRequest("This server's engine cannot return the probabilities of given tokens.")
            logprobs = sampling.logprobs is not None or sampling.prompt_logprobs is not None
            stream = stream or logprobs  # else all log probabilities of an answer would come in one call
            sink = OutputSink(
                sampling, self._model.tokenizer, usage, on_delta, on_text, stream=stream, images=bool(prompt.images or prompt.videos)
            )
            while not await self._try_request(self._engine, prompt, sampling, sink):
                pass
        except GatewayError:
            raise
        except VLLMClientError as error:
            raise refusal(error, sampling.structured_output) from error
        except GracefulHTTPError as error:
            raise TooManyRequests("The engine is busy. Try again later.", code="queue_full", retry_after=1) from error
        except RetryableRequestError as error:
            raise Unavailable("The engine did not take this request. Try again.", code="engine_abort", retry_after=1) from error
        except EngineDeadError as error:
            raise _engine_died() from error
        except Exception as error:
            raise EngineFailed("The engine could not process this request.") from error
        finally:
            self._generating -= 1

    async def check(self, timeout: float) -> None:
        if self._engine is None or health.is_dead(self._engine):
            raise _not_running()
        ping = asyncio.ensure_future(health.ping(self._engine))
        polls = 0  # counted instead of seconds, which pass also while this process gets no CPU time
        try:
            while not ping.done():
                await asyncio.wait((ping,), timeout=POLL_INTERVAL)
                if self._engine is None or health.is_dead(self._engine):
                    raise _engine_died()
                polls += 1
                if polls * POLL_INTERVAL > timeout:
                    raise Unavailable(f"The engine has not answered for {timeout:g} s.", code="engine_dead", retry_after=RETRY_AFTER)
            ping.result()
        except Unavailable:
            raise
        except Exception as error:  # any error: the engine has not answered
            raise Unavailable("The engine does not answer.", code="engine_dead", retry_after=RETRY_AFTER) from error
        finally:
            ping.cancel()

    async def stop(self) -> None:
        self._stopping = True
        if self._grammars:
            self._grammars.close()
        self._close_image_inputs()
        if (loading := self._loading) is not None:
            await asyncio.to_thread(self._shut_down, loading)
            self._loading = loading = None
            gc.unfreeze()  # vLLM's objects are garbage now, and must be collected before the next engine's are frozen
            await asyncio.to_thread(gc.collect)
        self._process_guard.close()

    def _load(self) -> "AsyncLLM":
        """Import vLLM and start the engine. Runs in a thread. Raises EngineStartError."""
        # A Ctrl-C goes to every process of the terminal. The engine's processes inherit this thread's signal mask and so ignore it: they
        # must go on until the running requests have ended. The resource tracker starts first, because its start would take SIGINT out of
        # the mask.
        set_environment()
        ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        with without_modules(unused_modules(self.flags)), closing(EarlyProcess(self.flags)) as early_process:
            arguments = engine_arguments(self.model, self.flags, early_process, self._video_frames, memory_check=self._memory_check)
            if self._stopping:
                raise EngineStartError("stopped while starting")
            self.stage = "loading its weights in the engine's process"
            return make_engine(arguments, early_process, self._video_frames)

    async def _try_request(self, engine: "AsyncLLM", prompt: Prompt, sampling: SamplingParams, sink: OutputSink) -> bool:
        """Send a request to the engine and return True when the answer is whole. Return False if the request has to be sent once more.

        A client that left during `_render` or `add_request` may have left vLLM's front end with the belief that the engine holds an image
        or a video, although the engine never got it. vLLM notices at the next request with that image or video, ends the request with
        "error", and forgets it.
        """
        name = new_id()
        collector = await self._add_request(engine, name, prompt, sampling, sink.stream)
        if sampling.logprobs is not None or sampling.prompt_logprobs is not None:
            requests.skip_token_texts(engine, name)
        usage = sink.usage
        usage.image_tokens = sum(image.tokens for image in prompt.images)
        usage.video_tokens = sum(video.tokens for video in prompt.videos)
        placeholders = len(prompt.images) + len(prompt.videos)
        usage.prompt_tokens = len(prompt.token_ids) - placeholders + usage.image_tokens + usage.video_tokens
        end = sink.begin()
        requests.redirect_outputs(collector, sink.put)
        if self._output_reader and sink.takes_text:
            self._output_reader.stream_text(collector, sink.put_text)
        whole = False
        try:
            whole = await asyncio.shield(end)  # the sink must count vLLM's outputs until this task has seen its cancellation
        except asyncio.CancelledError:
            if not sink.stream:
                usage.completion_tokens += requests.generated_tokens(engine, name)
            raise
        finally:
            requests.discard_outputs(collector)
            if self._output_reader:
                self._output_reader.discard_text(collector)
            if not whole and not health.is_dead(engine):
                await requests.abort(engine, collector)
        return whole

    async def _add_request(
        self, engine: "AsyncLLM", name: str, prompt: Prompt, sampling: SamplingParams, stream: bool
    ) -> "RequestOutputCollector":
        """Send a request to the engine. Return the collector of its outputs."""
        trace_headers = _trace_headers(engine)
        is_plain = self._request_sender and not (prompt.adapter or trace_headers)
        checked = self._checked_params.get(sampling, stream) if is_plain else None
        params = checked or sampling_params(sampling, stream, seeds_work=self._seeds_work)
        lora = self._running_lora_manager().request(prompt.adapter) if prompt.adapter else None
        rendered = await self._render(engine, prompt)
        # From here to the engine's socket nothing may be awaited that waits: vLLM's caches of images follow the order of the requests.
        if self._request_sender and checked:
            return self._request_sender.add_request(name, rendered, checked)
        collector = await engine.add_request(name, rendered, params, lora_request=lora, trace_headers=trace_headers)
        if self._output_reader:
            self._checked_params.add(sampling, stream, self._output_reader.completed_params(collector))
        return collector

    async def _render(self, engine: "AsyncLLM", prompt: Prompt) -> object:
        """Return a prompt as `AsyncLLM.add_request` takes it. The caller sends it without another await."""
        from vllm.inputs import tokens_input

        if not prompt.images and not prompt.videos:
            return tokens_input(prompt.token_ids, cache_salt=_salt(prompt))
        if self._image_inputs:
            return await self._image_inputs.make(prompt.token_ids, prompt.images, _salt(prompt))
        return await requests.process_media(engine.renderer, prompt.token_ids, prompt.images, _salt(prompt), videos=prompt.videos)

    def _closed(self, structured_output: StructuredOutput) -> StructuredOutput:
        """Return the format as the engine gets it. Raises InvalidRequest."""
        return close_format(structured_output) if self._closes_formats else structured_output

    def _running_lora_manager(self) -> LoraManager:
        if self._lora_manager is None:
            raise _not_running()
        return self._lora_manager

    def _shut_down(self, loading: "Future[AsyncLLM]") -> None:
        """End the engine, or its start. A start cannot be interrupted, but it fails when the processes that it has started are killed."""
        deadline = time.monotonic() + STOP_TIMEOUT
        engine, self._engine, self._lora_manager = self._engine, None, None
        if engine is not None:
            logging.getLogger("vllm").setLevel(logging.CRITICAL)  # vLLM reports its own end as a failure, with a traceback
            health.kill(health.engine_processes(), timeout=0)  # they have nothing to save, and a stopped process would never end
            noticed = time.monotonic() + NOTICE_TIMEOUT
            while self._generating and time.monotonic() < noticed:  # a shutdown before vLLM has noticed would leave requests waiting
                time.sleep(0.02)
            engine.shutdown()
        while not loading.done() and time.monotonic() < deadline:
            health.kill(health.engine_processes(), timeout=0)
            time.sleep(0.05)
        health.kill([*self._processes, *health.engine_processes()], timeout=0)


def _warm_up_prompt(info: ModelInfo) -> Prompt:
    """Return a prompt with one image; with one video for a model that takes no images."""
    if info.video and not info.takes_images:
        side, frame = info.video.side, np.zeros((1, info.video.side, info.video.side, 3), np.uint8)
        token_ids = info.tokenizer.encode(info.video_token, add_special_tokens=True).ids
        return Prompt(token_ids, (), videos=(PreparedVideo(frame, "warm-up", (side, side), 0.0, info.video.tokens(1)),))
    size = (info.vision.side, info.vision.side)
    token_ids = info.tokenizer.encode(info.image_token, add_special_tokens=True).ids
    return Prompt(token_ids, (PreparedImage(Image.new("RGB", size), "warm-up", size, info.vision.tokens(*size)),))


def _note_path(of: str, why: str | None) -> None:
    """Say in the log and in the metrics which path is used. `why`: the reason if it is not the fast one."""
    metrics.FAST_PATHS.labels(of).set(why is None)
    if why is None:
        log.info("%s take the fast path", of)
    else:
        log.warning("%s take vLLM's own path, which needs more CPU time: %s", of, why)


def _engine_died() -> Unavailable:
    return Unavailable("The engine has died.", code="engine_dead", retry_after=RETRY_AFTER)


def _not_running() -> Unavailable:
    return Unavailable("The engine is not running.", code="engine_dead", retry_after=RETRY_AFTER)


@contextmanager
def _exempt_from_garbage_collection() -> Iterator[None]:
    """Exempt the objects that are created within the block from garbage collection.

    They are vLLM and its model, a million objects that stay. The collector's looks at them would take seconds of the start. Later, each
    would stop all streams for a third of a second.
    """
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()


def _trace_headers(engine: "AsyncLLM") -> dict[str, str] | None:
    """Return the parent of the engine's own span, if the operator has vLLM write spans."""
    trace = current_context().trace
    return {"traceparent": trace} if trace and engine.observability_config.otlp_traces_endpoint else None


def _salt(prompt: Prompt) -> str | None:
    """Return the prompt's salt as vLLM takes it. vLLM forbids some characters."""
    return None if prompt.cache_salt is None else blake3(prompt.cache_salt.encode()).hexdigest(16)
