"""Plain streams get the same texts and the same statistics as from vLLM's own output processor."""

import dataclasses
from typing import Any

import pytest
from helpers.engine_outputs import FINISHED, add_request, params, texts, tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm import SamplingParams
from vllm.v1.engine import EngineCoreEvent, EngineCoreEventType, EngineCoreOutput
from vllm.v1.engine.output_processor import OutputProcessor
from vllm.v1.metrics.stats import IterationStats

from llava_gateway.engine.vllm.compat.output_processor import TextOutputProcessor

pytestmark = pytest.mark.slow

NAMES = "abc"


def text_processor(*names: str, sampling: SamplingParams) -> tuple[TextOutputProcessor, dict[str, list[Any]]]:
    """Return a processor with requests of these names, and the outputs and texts that each gets."""
    processor = TextOutputProcessor.replace(OutputProcessor(tokenizer(), log_stats=True), texts())
    received: dict[str, list[Any]] = {name: [] for name in names}
    for name in names:
        add_request(processor, name, received[name], sampling)
        processor.stream_text(name, lambda text, tokens, name=name: received[name].append((text, tokens)))  # type: ignore[misc]
    return processor, received


def process(processor: TextOutputProcessor, outputs: list[EngineCoreOutput], time: float, stats: IterationStats | None) -> list[str]:
    """Process a step as `OutputReader` does. Return the requests whose outputs went vLLM's own way."""
    others = processor.process_texts(outputs, time, stats)
    processor.process_outputs(others, time, stats, "default")
    return [output.request_id for output in others]


def copied(output: EngineCoreOutput) -> EngineCoreOutput:
    return EngineCoreOutput(output.request_id, list(output.new_token_ids), finish_reason=output.finish_reason, events=output.events)


def text_of(received: list[Any]) -> str:
    return "".join(each[0] if isinstance(each, tuple) else each.outputs[0].text for each in received)


def tokens_of(received: list[Any]) -> int:
    return sum(each[1] if isinstance(each, tuple) else len(each.outputs[0].token_ids) for each in received)


@st.composite
def steps(draw: st.DrawFn) -> list[list[EngineCoreOutput]]:
    """Steps of an engine for three requests: not each is in each step, some are preempted, and some end."""
    tokens, running, made = st.lists(st.integers(5, 639), min_size=1, max_size=3), set(NAMES), []
    for _ in range(draw(st.integers(1, 12))):
        step = []
        for name in draw(st.lists(st.sampled_from(NAMES), unique=True)):
            if name in running:
                reason = draw(st.sampled_from([None] * 6 + [FINISHED]))
                running -= {name} if reason else set()
                preempted = draw(st.booleans()) and draw(st.booleans())
                events = [EngineCoreEvent(EngineCoreEventType.PREEMPTED, 1.0)] if preempted else None
                step.append(EngineCoreOutput(name, draw(tokens), finish_reason=reason, events=events))
        made.append(step)
    return made


@settings(max_examples=200, deadline=None)
@given(steps=steps())
def test_texts_and_statistics_are_those_of_vllm(steps: list[list[EngineCoreOutput]]) -> None:
    own, received = OutputProcessor(tokenizer(), log_stats=True), {name: list[Any]() for name in NAMES}
    for name in NAMES:
        add_request(own, name, received[name], params())
    fast, texts_received = text_processor(*NAMES, sampling=params())
    for number, step in enumerate(steps):
        time = 10.0 + number
        own_stats, fast_stats = IterationStats(), IterationStats()
        fast_stats.iteration_timestamp = own_stats.iteration_timestamp
        own.process_outputs([copied(output) for output in step], time, own_stats, "default")
        process(fast, step, time, fast_stats)
        expected, found = vars(own_stats), vars(fast_stats)
        for each in (expected, found):
            each["inter_token_latencies_iter"] = sorted(each["inter_token_latencies_iter"])
            each["finished_requests"] = sorted(map(dataclasses.astuple, each["finished_requests"]), key=str)
        assert found == expected
    for name in NAMES:
        assert text_of(texts_received[name]) == text_of(received[name])
        assert tokens_of(texts_received[name]) == tokens_of(received[name])
    assert list(fast.request_states) == list(own.request_states)


def test_only_the_first_and_the_last_output_of_a_plain_stream_go_vllms_way() -> None:
    processor, received = text_processor("a", sampling=params())
    ways = [
        process(processor, [EngineCoreOutput("a", [300 + number], finish_reason=FINISHED if number == 4 else None)], float(number), None)
        for number in range(5)
    ]
    assert ways == [["a"], [], [], [], ["a"]]
    assert [isinstance(each, tuple) for each in received["a"]] == [False, True, True, True, False]
    assert not processor._streams
    assert not processor._waiting


@pytest.mark.parametrize("given", [{"stop": ["zz"]}, {"skip_special_tokens": False}])
def test_stream_with_stop_strings_or_control_tokens_goes_vllms_way(given: dict[str, Any]) -> None:
    processor, received = text_processor("a", sampling=params(**given))
    for number in range(3):
        assert process(processor, [EngineCoreOutput("a", [300 + number])], float(number), None) == ["a"]
    assert not any(isinstance(each, tuple) for each in received["a"])


def test_aborted_stream_gets_no_more_text() -> None:
    processor, received = text_processor("a", "b", sampling=params())
    process(processor, [EngineCoreOutput(name, [300]) for name in "ab"], 1.0, None)
    assert processor.abort_requests(["a"], internal=True) == ["a"]
    before = len(received["a"])
    process(processor, [EngineCoreOutput(name, [301]) for name in "ab"], 2.0, None)
    assert len(received["a"]) == before
    assert text_of(received["b"]) == "".join(texts()[token] or "" for token in (300, 301))
    assert list(processor._streams) == ["b"]


def test_discarded_stream_goes_vllms_way() -> None:
    processor, _ = text_processor("a", sampling=params())
    process(processor, [EngineCoreOutput("a", [300])], 1.0, None)
    processor.discard_text("a")
    assert process(processor, [EngineCoreOutput("a", [301])], 2.0, None) == ["a"]


def test_request_that_has_begun_streams_at_once() -> None:
    """A client's task may run only after the engine's first output."""
    processor, received = text_processor(sampling=params())[0], list[Any]()
    add_request(processor, "a", received, params())
    process(processor, [EngineCoreOutput("a", [300])], 1.0, None)
    processor.stream_text("a", lambda text, tokens: received.append((text, tokens)))
    assert process(processor, [EngineCoreOutput("a", [301])], 2.0, None) == []
    assert tokens_of(received) == 2


def test_errors_of_the_engine_reach_plain_streams() -> None:
    processor, received = text_processor("a", sampling=params())
    process(processor, [EngineCoreOutput("a", [300])], 1.0, None)
    error = RuntimeError("dead")
    processor.propagate_error(error)
    assert received["a"][-1] is error
