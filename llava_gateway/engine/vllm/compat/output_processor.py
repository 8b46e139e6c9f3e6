"""vLLM's output processor, with a short way for the tokens of plain streams. Importing this file imports vLLM.

vLLM makes two objects and a dozen calls for each token of each stream. A plain stream (one choice, deltas, no log probabilities, no stop
strings) needs only the token's text and its statistics in between its first and its last output. All other outputs go vLLM's own way.

Read in vLLM 0.32.0.
"""

from collections.abc import Callable, Iterable, Sequence

from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest
from vllm.v1.engine.detokenizer import IncrementalDetokenizer
from vllm.v1.engine.output_processor import OutputProcessor, OutputProcessorOutput, RequestOutputCollector, RequestState
from vllm.v1.engine.parallel_sampling import ParentRequest
from vllm.v1.metrics.stats import IterationStats

from llava_gateway.engine.vllm.compat.detokenizer import TableDetokenizer

OnText = Callable[[str, int], None]


class TextStream:
    """A plain stream after its first output."""

    __slots__ = ("detokenizer", "on_text", "stats")

    def __init__(self, state: RequestState, on_text: OnText) -> None:
        self.detokenizer: TableDetokenizer = state.detokenizer
        self.stats = state.stats
        self.on_text = on_text


class TextOutputProcessor(OutputProcessor):  # type: ignore[misc]  # vLLM has no types
    """vLLM's output processor of an engine, with plain streams apart.

    Touches: `OutputProcessor.tokenizer`, `request_states`, `add_request`, `abort_requests`, `_finish_request` and `process_outputs`;
    `RequestState.detokenizer`, `is_prefilling` and `stats`; `RequestStateStats.num_generation_tokens` and `last_token_ts`;
    `IterationStats.num_generation_tokens` and `inter_token_latencies_iter`; `EngineCoreOutput.request_id`, `new_token_ids`,
    `finish_reason` and `events`.
    Without it: vLLM's own class, whose outputs say the same.
    """

    _texts: Sequence[str | None]
    _waiting: dict[str, OnText]
    """Plain streams before their first output, by vLLM's own name of the request."""
    _streams: dict[str, TextStream]
    _last_step: float
    """The engine's time of the last step."""

    @classmethod
    def replace(cls, processor: OutputProcessor, texts: Sequence[str | None]) -> "TextOutputProcessor":
        """Return a processor in the place of vLLM's, which has no request yet. `texts`: see `TableDetokenizer`."""
        replacement = cls.__new__(cls)
        replacement.__dict__.update(processor.__dict__)
        replacement._tokenizer, replacement.tokenizer = processor.tokenizer, None
        replacement._texts, replacement._waiting, replacement._streams, replacement._last_step = texts, {}, {}, 0.0
        return replacement

    def stream_text(self, request_id: str, on_text: OnText) -> None:
        """Have `on_text` called with the text and the number of tokens of each output of a request, but for its first and its last.

        `request_id`: vLLM's own name of a request that is plain. `on_text`: must not raise.
        """
        state = self.request_states.get(request_id)
        if state is None or not isinstance(state.detokenizer, TableDetokenizer) or state.detokenizer.stop:
            return
        if state.is_prefilling:
            self._waiting[request_id] = on_text
        else:
            self._streams[request_id] = TextStream(state, on_text)

    def discard_text(self, request_id: str) -> None:
        """Call `on_text` no longer."""
        self._waiting.pop(request_id, None)
        self._streams.pop(request_id, None)

    def add_request(
        self,
        request: EngineCoreRequest,
        prompt: str | None,
        parent_req: ParentRequest | None = None,
        request_index: int = 0,
        queue: RequestOutputCollector | None = None,
    ) -> None:
        """Accept a request like vLLM's class, and give it our detokenizer. Its collector gets the parameters that vLLM has completed."""
        super().add_request(request, prompt, parent_req, request_index, queue)
        if queue is not None:
            queue.completed_params = request.sampling_params
        state = self.request_states[request.request_id]
        if request.sampling_params.skip_special_tokens:
            state.detokenizer = TableDetokenizer(self._tokenizer._tokenizer, request, self._texts)
        else:
            state.detokenizer = IncrementalDetokenizer.from_new_request(self._tokenizer, request)

    def abort_requests(self, request_ids: Iterable[str], internal: bool) -> list[str]:
        """Forget requests like vLLM's class."""
        aborted: list[str] = super().abort_requests(request_ids, internal)
        for request_id in aborted:
            self.discard_text(request_id)
        return aborted

    def _finish_request(self, req_state: RequestState) -> None:
        super()._finish_request(req_state)
        self.discard_text(req_state.request_id)

    def process_texts(self, outputs: list[EngineCoreOutput], time: float, stats: IterationStats | None) -> list[EngineCoreOutput]:
        """Process the outputs of plain streams in one step of the engine, and return the other outputs.

        `time`: the engine's, in seconds. `stats`: gets the statistics of the step; None if vLLM keeps none.
        """
        streams, last_step, others = self._streams, self._last_step, []
        generated = streams_of_last_step = 0
        for output in outputs:
            stream = streams.get(output.request_id)
            if stream is None or output.finish_reason is not None or output.events is not None:
                others.append(output)
                continue
            token_ids = output.new_token_ids
            tokens = len(token_ids)
            add = stream.detokenizer.add
            text = add(token_ids[0]) if tokens == 1 else "".join(map(add, token_ids))
            if stats is not None:
                generated += tokens
                of_request = stream.stats
                of_request.num_generation_tokens += tokens
                if of_request.last_token_ts == last_step:
                    streams_of_last_step += 1
                else:
                    stats.inter_token_latencies_iter.append(time - of_request.last_token_ts)
                of_request.last_token_ts = time
            stream.on_text(text, tokens)
        if stats is not None:
            stats.num_generation_tokens += generated
            stats.inter_token_latencies_iter += [time - last_step] * streams_of_last_step
        self._last_step = time
        return others

    def process_outputs(
        self,
        engine_core_outputs: list[EngineCoreOutput],
        engine_core_timestamp: float | None = None,
        iteration_stats: IterationStats | None = None,
        weight_version: str | None = None,
    ) -> OutputProcessorOutput:
        """Process outputs like vLLM's class. A plain stream has begun after that."""
        processed = super().process_outputs(engine_core_outputs, engine_core_timestamp, iteration_stats, weight_version)
        if self._waiting:
            for output in engine_core_outputs:
                if (on_text := self._waiting.get(output.request_id)) and not self.request_states[output.request_id].is_prefilling:
                    self._streams[output.request_id] = TextStream(self.request_states[output.request_id], on_text)
                    del self._waiting[output.request_id]
        return processed
