"""What text costs: streams, short answers, and streams that only wait."""

import asyncio
import statistics
import time
from collections.abc import Iterator

from bench.peers import Peer

from llava_gateway.demo import MODEL_NAME
from llava_gateway.loadtest.bodies import chat_bodies
from llava_gateway.loadtest.client import LoadTarget
from llava_gateway.loadtest.run import LoadResult, run_load_test

Row = dict[str, float]
STREAMS = (1, 32, 128)
TOKENS = 128
IDLE = 1000
PATH = "/chat/completions"


def rows(peer: Peer, seconds: float) -> Iterator[tuple[str, Row]]:
    """Each measured for about so long."""
    target = LoadTarget(f"{peer.url}/v1")
    # The first requests pay for caches and compiled code.
    asyncio.run(run_load_test(target, PATH, chat_bodies(MODEL_NAME, max_tokens=8), 8, 16))
    for streams in STREAMS:
        result, cpu = _measured(peer, target, streams, seconds, TOKENS, stream=True)
        first = sorted(outcome.first * 1000 for outcome in result.answered if outcome.first is not None)
        yield (
            f"{streams} stream{'s' * (streams > 1)}",
            {
                "front end CPU us per token": cpu / result.tokens * 1e6,
                "tokens/s": result.tokens / result.seconds,
                "first token p50 ms": statistics.median(first),
                "first token p99 ms": first[int(len(first) * 0.99)],
            },
        )
    result, cpu = _measured(peer, target, 8, seconds, 1, stream=False)
    yield "text, max_tokens 1", {"front end CPU ms": cpu / len(result.answered) * 1000, "requests/s": len(result.answered) / result.seconds}


def idle_streams(peer: Peer, count: int = IDLE) -> float:
    """Memory of the front end for streams that wait for the engine: MiB more than before."""

    async def hold() -> float:
        target, before = LoadTarget(f"{peer.url}/v1"), peer.rss()
        body = next(chat_bodies(MODEL_NAME, max_tokens=3000, ignore_eos=True))
        connections = [await target.connect() for _ in range(count)]
        asked = [asyncio.create_task(connection.ask(target.head(PATH, len(body)) + body)) for connection in connections]
        await asyncio.sleep(8)
        grown = (peer.rss() - before) / (1 << 20)
        assert not any(task.done() for task in asked[-count // 2 :]), asked[-1].result()
        for connection in connections:
            connection.close()
        await asyncio.gather(*asked)
        return grown

    return asyncio.run(hold())


def _measured(peer: Peer, target: LoadTarget, at_once: int, seconds: float, max_tokens: int, *, stream: bool) -> tuple[LoadResult, float]:
    """The load, and the front end's CPU for it in seconds."""
    bodies = chat_bodies(MODEL_NAME, max_tokens=max_tokens, stream=stream, ignore_eos=True)
    before = peer.cpu()
    result = asyncio.run(run_load_test(target, PATH, bodies, at_once, 1_000_000, deadline=time.monotonic() + seconds))
    assert not result.errors, result.errors[0]
    return result, peer.cpu() - before
