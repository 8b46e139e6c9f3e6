"""The cost of a mixed load: requests with and without new images, and text requests while images arrive at a steady rate."""

import asyncio
import itertools
import statistics
import time
from collections.abc import Iterator

from bench.chat_requests import CHAT, Chat, Row, about, chat, misdescribed, user, wrong_count
from bench.images import GRIDS
from bench.peers import Peer
from bench.pictures import MEDIUM, grid_picture, new_pictures

from llava_gateway.demo import MODEL_NAME
from llava_gateway.loadtest.bodies import chat_bodies
from llava_gateway.loadtest.client import LoadTarget, Outcome
from llava_gateway.loadtest.run import run_load_test

IMAGE_SHARE, CLIENTS, TOKENS = 0.7, 8, 16
IMAGES_PER_SECOND, TEXTS_PER_SECOND = 4, 20


def rows(peer: Peer, seconds: float) -> Iterator[Row]:
    """Yield both rows. `seconds`: the duration of each load."""
    fault = misdescribed(peer, GRIDS[:1], [grid_picture(MEDIUM, GRIDS[0])])
    yield _mixed(peer, seconds, fault)
    yield asyncio.run(_steady(peer, seconds, fault))


def _mixed(peer: Peer, seconds: float, fault: str) -> Row:
    """Return the rate and cost of a closed loop of clients. `fault`: a fault that was found before."""
    bodies = chat_bodies(
        MODEL_NAME, max_tokens=TOKENS, images=1, image_size=MEDIUM.size, image_share=IMAGE_SHARE, ignore_eos=True, **peer.fields
    )
    first = next(bodies)  # draws the photograph
    bodies = itertools.chain([first], bodies)
    target, before = LoadTarget(f"{peer.url}/v1"), peer.cpu()
    result = asyncio.run(run_load_test(target, CHAT, bodies, CLIENTS, 1_000_000, deadline=time.monotonic() + seconds))
    cpu = peer.cpu() - before
    assert not result.errors, result.errors[0]
    figures = {
        "requests/s": len(result.answered) / result.seconds,
        "front end CPU ms per request": cpu / len(result.answered) * 1000,
        "first token p50 ms": statistics.median(outcome.first * 1000 for outcome in result.answered if outcome.first is not None),
    }
    if not fault and any(outcome.completion_tokens != TOKENS for outcome in result.answered):
        fault = f"an answer does not have {TOKENS} tokens"
    return Row(f"mixed load, {IMAGE_SHARE:.0%} with a new 2 MP JPEG, {CLIENTS} clients", figures, fault)


async def _steady(peer: Peer, seconds: float, fault: str) -> Row:
    """Return the times to the first token of text requests that start at a fixed rate, as images do."""
    pictures = new_pictures(MEDIUM)
    images = [about(peer, next(pictures)) for _ in range(int(seconds * IMAGES_PER_SECOND))]
    texts = [chat(peer, [user(f"Question {number}: hello")]) for number in range(int(seconds * TEXTS_PER_SECOND))]
    with_images, answers = await asyncio.gather(_paced(peer, images, IMAGES_PER_SECOND), _paced(peer, texts, TEXTS_PER_SECOND))
    first = sorted((outcome.first or outcome.last) * 1000 for outcome in answers)
    figures = {"first token p50 ms": statistics.median(first), "first token p99 ms": first[int(len(first) * 0.99)]}
    fault = fault or wrong_count(images, with_images) or wrong_count(texts, answers)
    return Row(f"text while {IMAGES_PER_SECOND} new 2 MP JPEGs arrive per second", figures, fault)


async def _paced(peer: Peer, chats: list[Chat], per_second: float) -> list[Outcome]:
    """Send requests at a fixed rate, whether the ones before are answered or not. Return their outcomes."""
    target = LoadTarget(f"{peer.url}/v1")

    async def send(number: int, each: Chat) -> Outcome:
        await asyncio.sleep(number / per_second)
        connection = await target.connect()
        outcome = await connection.ask(target.head(CHAT, len(each.body)) + each.body)
        connection.close()
        assert not outcome.error, outcome.error
        return outcome

    return await asyncio.gather(*(send(number, each) for number, each in enumerate(chats)))
