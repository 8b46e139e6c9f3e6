"""Reads the engine's messages in vLLM's front end. Importing this file imports vLLM.

vLLM reads them with two tasks and zmq.asyncio, which wakes several callbacks and futures for each message. `OutputReader` reads the socket
in one callback of the event loop, and passes plain streams on in the same call.

Read in vLLM 0.32.0.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import vllm
import zmq
from vllm import SamplingParams, envs
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.engine.core import EngineCoreProc
from vllm.v1.engine.core_client import AsyncMPClient, _process_utility_output
from vllm.v1.engine.detokenizer import uses_fast_detokenizer
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.engine.output_processor import RequestOutputCollector
from vllm.v1.metrics.stats import IterationStats

from llava_gateway.engine.vllm.compat.output_processor import TextOutputProcessor
from llava_gateway.engine.vllm.compat.seeds import READ_IN

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

log = logging.getLogger(__name__)


def why_unsupported(engine: "AsyncLLM") -> str | None:
    """Return why vLLM's own way must stay in place for an engine. None: `OutputReader` may replace it.

    Touches: `AsyncLLM.engine_core`, `AsyncLLM.output_handler` and `AsyncLLM.output_processor`, `BackgroundResources.output_queue_task`,
    `OutputProcessor.stream_interval`, and the settings of the features whose outputs have more than tokens.
    """
    config = engine.vllm_config
    if not vllm.__version__.startswith(READ_IN):
        return f"it was not tested with vLLM {vllm.__version__}"
    if type(engine.engine_core) is not AsyncMPClient:
        return "the engine runs in several processes"
    if engine.output_handler is not None or engine.engine_core.resources.output_queue_task is not None:
        return "vLLM has begun to read the engine's messages"
    if not uses_fast_detokenizer(engine.output_processor.tokenizer):
        return "the model has a tokenizer in Python"
    for used, feature in (
        (engine.output_processor.stream_interval != 1, "a stream interval"),
        (envs.VLLM_COMPUTE_NANS_IN_LOGITS, "VLLM_COMPUTE_NANS_IN_LOGITS"),
        (config.parallel_config.enable_fault_tolerance, "fault tolerance"),
        (config.kv_transfer_config, "the transfer of KV caches"),
        (config.ec_transfer_config, "the transfer of encoder caches"),
        (config.aux_output_config.enabled, "routed experts"),
    ):
        if used:
            return f"the engine uses {feature}"
    return None


class OutputReader:
    """Reads an engine's messages instead of vLLM's two tasks. Its methods run on the event loop.

    Touches: `AsyncLLM.output_processor`, `output_handler`, `logger_manager`, `log_stats`, `renderer` and `engine_core`;
    `MPClient.resources`, `decoder` and `utility_results`; `BackgroundResources.output_socket`, `output_queue_task` and `engine_dead`;
    `EngineCoreProc.ENGINE_CORE_DEAD`; `_process_utility_output`; `BaseRenderer.mm_processor_cache` and `stat_mm_cache`;
    `OutputProcessor.propagate_error` and `update_scheduler_stats`.
    Without it: `AsyncLLM._run_output_handler` and `AsyncMPClient._ensure_output_queue_task` do the same, and take more of the event loop's
    time.
    """

    def __init__(self, engine: "AsyncLLM", token_texts: Sequence[str | None]) -> None:
        """Take the place of vLLM's tasks.

        `engine`: has not got a request yet, and `why_unsupported` returns None for it. `token_texts`: see `Tokenizer.token_texts`.
        """
        self._core = engine.engine_core
        self._resources = engine.engine_core.resources
        self._renderer = engine.renderer
        self._logger = engine.logger_manager
        self._log_stats = engine.log_stats
        self._chunk_size = envs.VLLM_V1_OUTPUT_PROC_CHUNK_SIZE
        self._processor = engine.output_processor = TextOutputProcessor.replace(engine.output_processor, token_texts)
        self._socket: zmq.Socket[bytes] = zmq.Socket.shadow(self._resources.output_socket.underlying)
        self._descriptor = os.dup(int(self._socket.getsockopt(zmq.FD)))  # stays valid when vLLM closes the socket
        self._remaining: tuple[EngineCoreOutputs, list[EngineCoreOutput], IterationStats | None] | None = None
        self._aborts: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._end: asyncio.Future[None] = self._loop.create_future()
        engine.output_handler = self._resources.output_queue_task = asyncio.create_task(self._run(), name="OutputReader")

    def stream_text(self, collector: RequestOutputCollector, on_text: Callable[[str, int], None]) -> None:
        """Have `on_text` called with the text and the number of tokens of each output, but for the first and the last.

        `collector`: of a request for a stream of one choice without log probabilities. `on_text`: must not raise.

        Touches: `RequestOutputCollector.request_id`.
        """
        self._processor.stream_text(collector.request_id, on_text)

    def completed_params(self, collector: RequestOutputCollector) -> SamplingParams:
        """Return the sampling parameters of a request as the engine has got them, with the tokens that end an answer."""
        return collector.completed_params

    def discard_text(self, collector: RequestOutputCollector) -> None:
        """Call `on_text` no longer."""
        self._processor.discard_text(collector.request_id)

    async def _run(self) -> None:
        """Read until the engine's death, which vLLM announces by cancelling this task, or until its end. Both end all requests."""
        self._loop.add_reader(self._descriptor, self._read)
        self._loop.call_soon(self._read)  # messages that have arrived already
        error: Exception = EngineDeadError()
        try:
            await self._end
        except Exception as raised:
            error = raised
            if not isinstance(error, EngineDeadError):
                log.exception("The engine's outputs can no longer be read.")
        finally:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._processor.propagate_error(error)

    def _read(self) -> None:
        """Read all messages that have arrived. Streams of the first are written before the second is read."""
        try:
            while not self._end.done() and not self._remaining and (frames := self._receive()):
                self._process(self._core.decoder.decode(frames))
        except Exception as error:
            self._fail(error)

    def _receive(self) -> list[bytes | zmq.Frame]:
        """Return the frames of the next message; none if there is no message."""
        try:
            frames: list[bytes | zmq.Frame] = [self._socket.recv(zmq.NOBLOCK)]
        except zmq.Again:
            return []
        while self._socket.getsockopt(zmq.RCVMORE):
            frames.append(self._socket.recv(zmq.NOBLOCK, copy=False))
        if frames[0] == EngineCoreProc.ENGINE_CORE_DEAD:
            self._resources.engine_dead = True
            raise EngineDeadError
        return frames

    def _process(self, outputs: EngineCoreOutputs) -> None:
        if outputs.utility_output:
            _process_utility_output(outputs.utility_output, self._core.utility_results)
            return
        stats = IterationStats() if self._log_stats and outputs.outputs else None
        others = self._processor.process_texts(outputs.outputs, outputs.timestamp, stats)
        if others:
            self._process_others(outputs, others, stats)
        else:
            self._record(outputs, stats)

    def _process_others(self, outputs: EngineCoreOutputs, others: list[EngineCoreOutput], stats: IterationStats | None) -> None:
        """Process outputs vLLM's way: some of them now, and the rest after other callbacks of the event loop."""
        now, later = others[: self._chunk_size], others[self._chunk_size :]
        processed = self._processor.process_outputs(now, outputs.timestamp, stats, outputs.weight_version)
        if (cache := self._renderer.mm_processor_cache) is not None:
            for output in now:
                for image in output.mm_cache_miss_hashes or ():
                    cache.invalidate(image)
        if processed.reqs_to_abort:
            abort = asyncio.ensure_future(self._core.abort_requests_async(processed.reqs_to_abort))
            self._aborts.add(abort)
            abort.add_done_callback(self._aborts.discard)
        if later:
            self._remaining = outputs, later, stats
            self._loop.call_soon(self._go_on)
        else:
            self._record(outputs, stats)

    def _go_on(self) -> None:
        if self._remaining and not self._end.done():
            remaining, self._remaining = self._remaining, None
            try:
                self._process_others(*remaining)
            except Exception as error:
                self._fail(error)
            else:
                self._read()

    def _record(self, outputs: EngineCoreOutputs, stats: IterationStats | None) -> None:
        self._processor.update_scheduler_stats(outputs.scheduler_stats)
        if self._logger:
            self._logger.record(
                engine_idx=outputs.engine_index,
                scheduler_stats=outputs.scheduler_stats,
                iteration_stats=stats,
                mm_cache_stats=self._renderer.stat_mm_cache(),
            )

    def _fail(self, error: Exception) -> None:
        if not self._end.done():
            self._end.set_exception(error)
