"""From the engine that gives deltas to the reader who takes them: nothing lost, nothing out of order, however the two keep step."""

import asyncio
import dataclasses
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_gateway.api.openai.chat_response import collect_chat_completion
from llava_gateway.api.openai.completion_response import collect_text_choices, render_text_completion
from llava_gateway.api.openai.streaming import RenderOptions
from llava_gateway.errors import EngineFailed, Unavailable
from llava_gateway.serving.delta_stream import MAX_LOGPROBS, DeltaStream
from llava_gateway.serving.prepare import PreparedRequest
from llava_gateway.types import ChatRequest, CompletionRequest, Delta, SamplingParams, TokenLogprob, Usage

LOGPROBS = RenderOptions(logprobs=True)
PROMPT = CompletionRequest(model="m", prompt="p", stream=True)


def answer_of(
    engine: Callable[[DeltaStream], AsyncIterator[None]], request: CompletionRequest | ChatRequest = PROMPT, copies: int = 1
) -> DeltaStream:
    """An answer that the engine, a generator which is gone through to its end, gives deltas to. Needs a running loop."""
    sampling = dataclasses.replace(request.sampling, n=request.sampling.n // copies)
    unused: Any = None
    answer = DeltaStream(PreparedRequest(request, unused, unused, "p", [], 0, sampling), Usage())

    async def work() -> None:
        async for _ in engine(answer):
            pass

    asyncio.create_task(work()).add_done_callback(answer.end)
    return answer


def give(texts: str, *, pauses: set[int] = frozenset(), fails: bool = False) -> Callable[[DeltaStream], AsyncIterator[None]]:  # type: ignore[assignment]
    """An engine that gives one character at a time, and lets others run after those in `pauses`."""

    async def engine(answer: DeltaStream) -> AsyncIterator[None]:
        for place, text in enumerate(texts):
            answer.push(Delta(0, text, 1, "stop" if place + 1 == len(texts) and not fails else None))
            if place in pauses:
                await asyncio.sleep(0)
        if fails:
            raise Unavailable("The engine has died.")
        yield

    return engine


@given(
    texts=st.lists(st.text("ab ", max_size=2), min_size=1, max_size=20),
    as_text=st.sets(st.integers(0, 20)),
    pauses=st.sets(st.integers(0, 20)),
    refused=st.sets(st.integers(0, 20)),
    chat=st.booleans(),
)
def test_text_arrives_once_and_in_order_as_delta_or_as_text_alone(
    texts: list[str], as_text: set[int], pauses: set[int], refused: set[int], chat: bool
) -> None:
    """The reader refuses some texts, because its client is slow."""
    request = ChatRequest(model="m", messages=(), stream=True) if chat else PROMPT

    async def engine(answer: DeltaStream) -> AsyncIterator[None]:
        for place, text in enumerate(texts):
            answer.usage.completion_tokens += 1
            if place in as_text:
                answer.push_text(text, 1)
            else:
                answer.push(Delta(0, text, 1))
            if place in pauses:
                await asyncio.sleep(0)
        answer.push(Delta(0, "", 0, "stop"))
        yield

    async def read() -> tuple[str, list[str]]:
        got, alone = list[str](), list[str]()
        turns = iter(range(1000))

        def on_delta(delta: Delta) -> bool:
            if next(turns) in refused:
                return False
            got.append(delta.text)
            return True

        def on_text(text: str) -> bool:
            if next(turns) in refused:
                return False
            got.append(text)
            alone.append(text)
            return True

        async for delta in answer_of(engine, request).deltas(on_delta, on_text):
            got.append(delta.text)
        return "".join(got), alone

    text, alone = asyncio.run(read())
    whole = "".join(texts)
    assert text == (whole.removeprefix(" ") if chat else whole)
    assert set(alone) <= set(texts)


@given(
    st.text("abcdefgh", min_size=1, max_size=30),
    st.sets(st.integers(0, 30)),
    st.sets(st.integers(0, 30)),
    st.lists(st.integers(0, 3), min_size=1, max_size=30),
)
def test_every_delta_arrives_once_and_in_order(text: str, pauses: set[int], refused: set[int], naps: list[int]) -> None:
    """Whether it is taken on the spot or refused, and however often the reader sleeps over what it iterates."""

    async def read() -> tuple[str, int]:
        got: list[Delta] = []
        turns = iter(range(10_000))

        def take(delta: Delta) -> bool:
            if next(turns) in refused:
                return False
            got.append(delta)
            return True

        answer = answer_of(give(text, pauses=pauses))
        await answer.wait_first_delta(None)
        async for delta in answer.deltas(take):
            got.append(delta)
            for _ in range(naps[len(got) % len(naps)]):
                await asyncio.sleep(0)
        assert [delta.finish_reason for delta in got] == [None] * (len(got) - 1) + ["stop"]
        return "".join(delta.text for delta in got), sum(delta.tokens for delta in got)

    assert asyncio.run(read()) == (text, len(text))


def test_reader_with_on_delta_is_not_woken_for_each_token() -> None:
    async def read() -> tuple[str, int]:
        taken: list[str] = []

        def take(delta: Delta) -> bool:
            taken.append(delta.text)
            return True

        answer = answer_of(give("x" * 100, pauses=set(range(100))))
        await answer.wait_first_delta(None)
        woken = len([delta async for delta in answer.deltas(take)])
        return "".join(taken), woken

    taken, woken = asyncio.run(read())
    assert woken <= 1  # for what came before it began to read
    assert len(taken) >= 99


def test_error_comes_after_the_deltas_before_it() -> None:
    async def read() -> None:
        got = ""
        answer = answer_of(give("abc", fails=True))
        await answer.wait_first_delta(None)
        deltas = aiter(answer)
        while len(got) < 3:
            got += (await anext(deltas)).text
        assert got == "abc"
        with pytest.raises(Unavailable):
            await anext(deltas)

    asyncio.run(read())


def test_error_before_the_first_delta_is_raised_at_once() -> None:
    async def read() -> None:
        with pytest.raises(Unavailable):
            await answer_of(give("", fails=True)).wait_first_delta(None)
        with pytest.raises(EngineFailed):
            await answer_of(give("")).wait_first_delta(None)

    asyncio.run(read())


def test_silent_engine_does_not_delay_the_stream() -> None:
    async def silent(answer: DeltaStream) -> AsyncIterator[None]:
        await asyncio.sleep(0.1)
        answer.push(Delta(0, "late", 1, "stop"))
        yield

    async def read() -> str:
        answer = answer_of(silent)
        await answer.wait_first_delta(0.01)
        return "".join([delta.text async for delta in answer])

    assert asyncio.run(read()) == "late"


def test_greedy_choices_are_copies_of_one() -> None:
    async def read() -> tuple[dict[int, str], int]:
        request = ChatRequest(model="m", messages=(), sampling=SamplingParams(n=3, temperature=0))
        answer = answer_of(give(" abc", pauses={0, 2}), request, copies=3)
        texts = dict.fromkeys(range(3), "")
        async for delta in answer:
            texts[delta.index] += delta.text
        return texts, answer.usage.completion_tokens

    assert asyncio.run(read()) == (dict.fromkeys(range(3), "abc"), 8)  # the engine counts its own four tokens


def logprobs(count: int) -> tuple[TokenLogprob, ...]:
    return tuple(TokenLogprob(b"%d" % number, -1.0) for number in range(count))


PIECES = st.lists(st.tuples(st.integers(0, 1), st.sampled_from(["a", "é", "\N{LLAMA}"]), st.booleans()), max_size=20)
"""Of two choices: the next text, and whether the engine lets others run after it."""


def whole(pieces: list[tuple[int, str, bool]], render: Callable[[DeltaStream], Awaitable[Any]]) -> Any:
    """The choices that `render` makes of an answer of these pieces."""

    async def engine(answer: DeltaStream) -> AsyncIterator[None]:
        for index, text, pause in pieces:
            entries = tuple(
                TokenLogprob(byte.to_bytes(), -0.5, ((byte.to_bytes(), -0.5), (b"b", -2.0)), byte, (byte, ord("b")))
                for byte in text.encode()
            )
            answer.push(Delta(index, text, len(entries), logprobs=entries))
            if pause:
                await asyncio.sleep(0)
        for index in range(2):
            answer.push(Delta(index, "", 0, "stop"))
        yield

    async def read() -> Any:
        answer = answer_of(engine, CompletionRequest(model="m", prompt="p"))
        await answer.wait_first_delta(None)
        return await render(answer)

    return asyncio.run(read())


@given(PIECES)
def test_answer_is_the_same_in_one_piece_and_in_many(pieces: list[tuple[int, str, bool]]) -> None:
    joined = [(index, "".join(text for other, text, _ in pieces if other == index), False) for index in range(2)]

    async def chat(answer: DeltaStream) -> Any:
        return orjson.loads(b"".join(await collect_chat_completion(answer, "m", LOGPROBS)))["choices"]

    async def text(answer: DeltaStream) -> Any:
        choices = render_text_completion(await collect_text_choices(answer, LOGPROBS), answer.usage, "m", LOGPROBS)
        return orjson.loads(b"".join(choices))["choices"]

    for render in (chat, text):
        assert whole(pieces, render) == whole(joined, render)
    for index, choice in enumerate(whole(pieces, chat)):
        assert (choice["index"], choice["message"]["content"], choice["finish_reason"]) == (index, joined[index][1], "stop")
        assert bytes(byte for entry in choice["logprobs"]["content"] for byte in entry["bytes"]) == joined[index][1].encode()


@pytest.mark.slow
def test_log_probabilities_leave_no_objects_for_the_garbage_collector() -> None:
    """Hundreds of thousands of them: each full collection held the event loop for a tenth of a second."""
    counts: list[int] = []

    async def engine(answer: DeltaStream) -> AsyncIterator[None]:
        for number in range(2000):
            if number in (500, 1999):
                await asyncio.sleep(0)
                gc.collect()
                counts.append(len(gc.get_objects()))
            top = tuple((b"%d" % rank, -0.5) for rank in range(20))
            answer.push(Delta(0, "a", 1, logprobs=(TokenLogprob(b"a", -0.5, top),)))
        answer.push(Delta(0, "", 0, "stop"))
        yield

    async def read() -> None:
        answer = answer_of(engine, CompletionRequest(model="m", prompt="p"))
        await answer.wait_first_delta(None)
        await collect_chat_completion(answer, "m", LOGPROBS)

    asyncio.run(read())
    assert counts[1] - counts[0] < 100


def test_held_log_probabilities_are_split() -> None:
    """One delta with thousands of them would hold the event loop while it is rendered."""

    async def read() -> list[Delta]:
        async def engine(answer: DeltaStream) -> AsyncIterator[None]:
            answer.push(Delta(0, "a" * 1000, 1000, logprobs=logprobs(1000)))
            answer.push(Delta(0, "b", 1, "stop", logprobs=logprobs(1)))
            yield

        answer = answer_of(engine)
        await answer.wait_first_delta(None)
        return [delta async for delta in answer]

    parts = asyncio.run(read())
    assert max(len(part.logprobs) for part in parts) <= MAX_LOGPROBS
    assert sum((part.logprobs for part in parts), ()) == logprobs(1000) + logprobs(1)
    assert "".join(part.text for part in parts) == "a" * 1000 + "b"
    assert sum(part.tokens for part in parts) == 1001
    assert [part.finish_reason for part in parts] == [None] * (len(parts) - 1) + ["stop"]
