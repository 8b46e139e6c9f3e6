"""vLLM in this process (AsyncLLM). Nothing outside this package imports vLLM."""

import asyncio
import gc
import logging
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.resource_tracker import ensure_running
from typing import TYPE_CHECKING, Any

from PIL import Image

from llava_gateway.engine.vllm.compat import seeds_work, without_spelling
from llava_gateway.engine.vllm.launch import describe, engine_arguments, make_engine
from llava_gateway.engine.vllm.lora import LoraManager
from llava_gateway.engine.vllm.outputs import OutputSink, generated_tokens, refusal
from llava_gateway.engine.vllm.process_guard import ProcessGuard, engine_processes, kill
from llava_gateway.engine.vllm.sampling import sampling_params
from llava_gateway.engine.vllm.structured_outputs import GrammarChecker
from llava_gateway.errors import EngineFailed, EngineStartError, GatewayError, TooManyRequests, Unavailable
from llava_gateway.observability.context import current_context, new_id
from llava_gateway.types import Delta, LoraAdapter, ModelInfo, PreparedImage, Prompt, SamplingParams, StructuredOutput, Usage

if TYPE_CHECKING:
    import vllm
    from vllm.v1.engine.async_llm import AsyncLLM

log = logging.getLogger(__name__)

RETRY_AFTER = 10
STOP_TIMEOUT = 20
LOOK_INTERVAL = 0.25
NOTICE_TIMEOUT = 3


class VllmEngine:
    """One model on one AsyncLLM. Importing vLLM takes seconds, so it happens in `start`, off the event loop."""

    def __init__(self, model: str, flags: Sequence[str] = ()) -> None:
        """`flags` are vLLM's own engine flags, as its command line has them."""
        self.model = model
        self.flags = flags
        self._engine: AsyncLLM | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")  # for loading, which cannot be interrupted
        self._loading: Future[AsyncLLM] | None = None
        self._stopping = False
        self._generating = 0
        self._grammars: GrammarChecker | None = None
        self._lora_manager: LoraManager | None = None
        self._process_guard = ProcessGuard()
        self.stage = "importing vLLM"

    @property
    def dead(self) -> bool:
        return self._engine is not None and self._engine.errored

    async def start(self) -> ModelInfo:
        with _set_apart():
            return await self._start()

    async def _start(self) -> ModelInfo:
        self._loading = self._thread.submit(self._load)
        loading = asyncio.wrap_future(self._loading)
        loading.add_done_callback(lambda done: done.cancelled() or done.exception())  # has been seen, should nobody wait for it
        while not loading.done():
            await asyncio.wait((loading,), timeout=0.5)
            self._process_guard.watch([process.pid for process in engine_processes()])
        self._engine = engine = loading.result()
        self._model = info = describe(engine)
        self._lora_manager = LoraManager(engine)
        self._seeds_work = seeds_work(engine.vllm_config)
        if engine.vllm_config.structured_outputs_config.backend == "guidance":  # else the operator has chosen
            self._grammars = GrammarChecker(info.tokenizer)
        self.stage = "answering for the first time"
        await self._warm_up(info)
        return info

    async def _warm_up(self, info: ModelInfo) -> None:
        """One answer to one image, so that what vLLM makes at its first use is made before somebody waits for it."""
        size = (info.vision.side, info.vision.side)
        tokens = info.vision.tokens(*size)
        if tokens + 2 > info.context_length:
            return
        image = PreparedImage(Image.new("RGB", size), "warm-up", size, tokens)
        token_ids = info.tokenizer.encode(info.image_token, add_special_tokens=True).ids
        try:
            sampling = SamplingParams(max_tokens=1, logprobs=1)
            await self.generate(Prompt(token_ids, (image,)), sampling, stream=False, usage=Usage(), on_delta=lambda delta: None)
        except GatewayError as error:
            raise EngineStartError(f"{self.model} does not answer: {error.message}") from error

    async def check_structured_output(self, structured_output: StructuredOutput) -> None:
        if self._grammars:
            await self._grammars.check(structured_output)

    async def load_adapter(self, adapter: LoraAdapter) -> None:
        await self._started().load(adapter)

    async def unload_adapter(self, adapter: LoraAdapter) -> None:
        await self._started().unload(adapter)

    async def generate(
        self, prompt: Prompt, sampling: SamplingParams, *, stream: bool, usage: Usage, on_delta: Callable[[Delta], None]
    ) -> None:
        from vllm.exceptions import GracefulHTTPError, VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError

        if self._engine is None:
            raise Unavailable("The engine is not running.", code="engine_dead", retry_after=RETRY_AFTER)
        self._generating += 1
        try:
            stream = stream or sampling.logprobs is not None  # of a whole answer they would all come in one call
            delivery = OutputSink(sampling, self._model.tokenizer, usage, on_delta, stream=stream, images=bool(prompt.images))
            params = sampling_params(sampling, stream, seeds_work=self._seeds_work)
            while not await self._deliver(self._engine, prompt, params, delivery):
                pass
        except GatewayError:
            raise
        except VLLMClientError as error:
            raise refusal(error, sampling.structured_output) from error
        except GracefulHTTPError as error:
            raise TooManyRequests("The engine is busy. Try again later.", code="queue_full", retry_after=1) from error
        except EngineDeadError as error:
            raise Unavailable("The engine has died.", code="engine_dead", retry_after=RETRY_AFTER) from error
        except Exception as error:
            raise EngineFailed("The engine could not process this request.") from error
        finally:
            self._generating -= 1

    async def check(self, timeout: float) -> None:
        # check_health() passes on a wedged engine; a question that the engine's own loop has to answer does not.
        if self._engine is None or self._engine.errored:
            raise Unavailable("The engine is not running.", code="engine_dead", retry_after=RETRY_AFTER)
        question = asyncio.ensure_future(self._engine.is_paused())
        waits = 0  # and not seconds, which may have passed because this process had no time to look
        try:
            while not question.done():
                await asyncio.wait((question,), timeout=LOOK_INTERVAL)
                if self._engine is None or self._engine.errored:
                    raise Unavailable("The engine has died.", code="engine_dead", retry_after=RETRY_AFTER)
                waits += 1
                if waits * LOOK_INTERVAL > timeout:
                    raise Unavailable(f"The engine has not answered for {timeout:g} s.", code="engine_dead", retry_after=RETRY_AFTER)
            question.result()
        except Unavailable:
            raise
        except Exception as error:  # whatever it is, the engine has not answered
            raise Unavailable("The engine does not answer.", code="engine_dead", retry_after=RETRY_AFTER) from error
        finally:
            question.cancel()

    async def stop(self) -> None:
        self._stopping = True
        if self._grammars:
            self._grammars.close()
        if (loading := self._loading) is not None:
            await asyncio.to_thread(self._end, loading)
            self._loading = loading = None
            gc.unfreeze()  # what there was of vLLM is garbage, and must not be set apart with the next engine
            await asyncio.to_thread(gc.collect)
        self._process_guard.close()

    def _load(self) -> "AsyncLLM":
        arguments = engine_arguments(self.model, self.flags)
        # A Ctrl-C goes to every process of the terminal. The engine's, which have this thread's mask, must go on until requests have ended.
        ensure_running()  # now, since it would take SIGINT out of the mask
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        if self._stopping:
            raise EngineStartError("stopped while starting")
        self.stage = "loading its weights in the engine's process"
        return make_engine(arguments)

    async def _deliver(self, engine: "AsyncLLM", prompt: Prompt, params: "vllm.SamplingParams", delivery: OutputSink) -> bool:
        """Whether the answer is whole; if not, the request has to be sent once more. A client that left between the first two steps below
        may have made vLLM's front end believe that the engine holds an image which it never got; vLLM notices, ends the request with
        "error" and forgets the image."""
        lora = self._started().request(prompt.adapter) if prompt.adapter else None
        rendered, name = await _render(engine, prompt), new_id()
        collector = await engine.add_request(name, rendered, params, lora_request=lora, trace_headers=_trace(engine))
        if params.logprobs is not None:
            without_spelling(engine, name)
        usage = delivery.usage
        usage.image_tokens = sum(image.tokens for image in prompt.images)
        usage.prompt_tokens = len(prompt.token_ids) - len(prompt.images) + usage.image_tokens
        end = delivery.begin()
        early, collector.output = collector.output, None
        collector.put = delivery.put
        if early:
            delivery.put(early)
        whole = False
        try:
            whole = await end
        except asyncio.CancelledError:
            if not delivery.stream:
                usage.completion_tokens += generated_tokens(engine, name)
            raise
        finally:
            collector.put = lambda output: None  # of its other choices, for which nobody waits any more
            if not whole and not engine.errored:
                await engine.abort(collector.request_id, internal=True)
        return whole

    def _started(self) -> LoraManager:
        if self._lora_manager is None:
            raise Unavailable("The engine is not running.", code="engine_dead", retry_after=RETRY_AFTER)
        return self._lora_manager

    def _end(self, loading: "Future[AsyncLLM]") -> None:
        """End the engine, or its loading: that cannot be interrupted, but fails once the processes it starts are ended."""
        deadline = time.monotonic() + STOP_TIMEOUT
        engine, self._engine, self._lora_manager = self._engine, None, None
        if engine is not None:
            logging.getLogger("vllm").setLevel(logging.CRITICAL)  # vLLM reports its own end as a failure, with a traceback
            kill(engine_processes(), patience=0)  # there is nothing that it would have to save, and a stopped process would never end
            noticed = time.monotonic() + NOTICE_TIMEOUT
            while self._generating and time.monotonic() < noticed:  # shut down before it has noticed, vLLM would leave them waiting
                time.sleep(0.02)
            engine.shutdown()
        while not loading.done() and time.monotonic() < deadline:
            kill(engine_processes(), patience=0)
            time.sleep(0.05)
        kill(engine_processes(), patience=0)


@contextmanager
def _set_apart() -> Iterator[None]:
    """What is made within is vLLM and its model, a million objects that stay. The garbage collector is kept from looking through them: as
    they come, which takes seconds of the start, and later, when all streams would stand still for a third of a second."""
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()


def _trace(engine: "AsyncLLM") -> dict[str, str] | None:
    """What the engine's own span hangs below, where the operator has it write spans."""
    trace = current_context().trace
    return {"traceparent": trace} if trace and engine.observability_config.otlp_traces_endpoint else None


async def _render(engine: "AsyncLLM", prompt: Prompt) -> Any:
    """The hand-off of a prompt to vLLM: token ids as they are, images through its processor (in vLLM's own thread)."""
    from vllm.inputs import tokens_input

    if not prompt.images:
        return tokens_input(prompt.token_ids)
    (rendered,) = await engine.renderer.render_cmpl_async(
        [
            {
                "prompt_token_ids": prompt.token_ids,
                "multi_modal_data": {"image": [image.pixels for image in prompt.images]},
                "multi_modal_uuids": {"image": [image.digest for image in prompt.images]},
            }
        ]
    )
    return rendered
