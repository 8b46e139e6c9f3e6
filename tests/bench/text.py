"""The cost of text: streams of tokens, short answers, and memory for streams that wait."""

import asyncio
import statistics
import time
from collections.abc import Iterator

from bench.chat_requests import CHAT, Row, say
from bench.peers import Peer

from llava_gateway.demo import MODEL_NAME
from llava_gateway.demo.conversations import NO_IMAGE
from llava_gateway.loadtest.bodies import chat_bodies
from llava_gateway.loadtest.client import LoadTarget
from llava_gateway.loadtest.run import LoadResult, run_load_test

STREAMS = (1, 32, 128, 256)
TOKENS = 128
"""Tokens of each stream."""
IDLE = 1000
"""Streams that wait."""
SHORT = "text, max_tokens 1"


def stream_row(streams: int) -> str:
    """Return the name of a row of streams."""
    return f"{streams} stream{'s' * (streams > 1)}"


def rows(peer: Peer, seconds: float) -> Iterator[Row]:
    """Yield the rows of streams and of short answers. `seconds`: the duration of each load."""
    target = LoadTarget(f"{peer.url}/v1")
    # The first requests fill caches and compile code.
    asyncio.run(run_load_test(target, CHAT, chat_bodies(MODEL_NAME, max_tokens=8, **peer.fields), 8, 16))
    answer = say(peer, [{"role": "user", "content": "Describe this image."}])
    fault = "" if answer == NO_IMAGE else f"a request without an image is answered {answer[:120]!r}"
    for streams in STREAMS:
        yield _streams(peer, target, streams, seconds, fault)
    result, cpu = _load(peer, target, 8, seconds, 1, stream=False)
    figures = {"front end CPU ms": cpu / len(result.answered) * 1000, "requests/s": len(result.answered) / result.seconds}
    yield Row(SHORT, figures, fault or wrong_length(result, 1))


def idle_streams(peer: Peer, count: int = IDLE) -> float:
    """Return the MiB by which the front end grows while streams wait for the engine."""

    async def hold() -> float:
        target, before = LoadTarget(f"{peer.url}/v1"), peer.rss()
        body = next(chat_bodies(MODEL_NAME, max_tokens=3000, ignore_eos=True, **peer.fields))
        connections = [await target.connect() for _ in range(count)]
        asked = [asyncio.create_task(connection.ask(target.head(CHAT, len(body)) + body)) for connection in connections]
        await asyncio.sleep(8)
        grown = (peer.rss() - before) / (1 << 20)
        assert not any(task.done() for task in asked[-count // 2 :]), asked[-1].result()
        for connection in connections:
            connection.close()
        await asyncio.gather(*asked)
        return grown

    return asyncio.run(hold())


def wrong_length(result: LoadResult, tokens: int) -> str:
    """Return a sentence about the first answer that has another number of tokens, or nothing."""
    wrong = next((outcome for outcome in result.answered if outcome.completion_tokens != tokens), None)
    return f"an answer has {wrong.completion_tokens} tokens instead of {tokens}" if wrong else ""


def _streams(peer: Peer, target: LoadTarget, streams: int, seconds: float, fault: str) -> Row:
    result, cpu = _load(peer, target, streams, seconds, TOKENS, stream=True)
    first = sorted(outcome.first * 1000 for outcome in result.answered if outcome.first is not None)
    figures = {
        "front end CPU us per token": cpu / result.tokens * 1e6,
        "tokens/s": result.tokens / result.seconds,
        "first token p50 ms": statistics.median(first),
        "first token p99 ms": first[int(len(first) * 0.99)],
    }
    return Row(stream_row(streams), figures, fault or wrong_length(result, TOKENS))


def _load(peer: Peer, target: LoadTarget, clients: int, seconds: float, max_tokens: int, *, stream: bool) -> tuple[LoadResult, float]:
    """Run a load of text requests. Return its result and the front end's CPU seconds."""
    bodies = chat_bodies(MODEL_NAME, max_tokens=max_tokens, stream=stream, ignore_eos=True, **peer.fields)
    before = peer.cpu()
    result = asyncio.run(run_load_test(target, CHAT, bodies, clients, 1_000_000, deadline=time.monotonic() + seconds))
    assert not result.errors, result.errors[0]
    return result, peer.cpu() - before
