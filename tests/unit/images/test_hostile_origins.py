"""Origins that send little data and much work: no fetch holds the event loop, and good ones go on."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from ipaddress import ip_network
from typing import Any

import pytest
from helpers.hostile_origin import HOSTILE, PICTURE, Stalls, hostile_origin

from llava_gateway.errors import InvalidImage
from llava_gateway.images.fetch import Fetcher
from llava_gateway.settings import Settings

LONGEST_STALL = 0.05


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with hostile_origin() as url:
        yield url


def run(work: Callable[[Fetcher], Awaitable[None]], **settings: Any) -> None:
    async def main() -> None:
        defaults = {"image_timeout": 3, "max_image_mb": 1, "image_downloads": 64, "allow_networks": (ip_network("127.0.0.0/8"),)}
        fetcher = Fetcher(Settings(**defaults | settings))
        try:
            await work(fetcher)
        finally:
            await fetcher.close()

    asyncio.run(main())


@pytest.mark.parametrize("path", HOSTILE)
def test_32_hostile_urls_do_not_hold_the_event_loop(url: str, path: str) -> None:
    async def work(fetcher: Fetcher) -> None:
        async with Stalls() as stalls:
            hostile = [asyncio.create_task(fetcher.fetch(f"{url}/{path}")) for _ in range(32)]
            good = await fetcher.fetch(f"{url}/good")
            ends = await asyncio.gather(*hostile, return_exceptions=True)
        assert good.data == PICTURE
        assert all(isinstance(end, InvalidImage) for end in ends)
        assert stalls.longest < LONGEST_STALL

    run(work, image_timeout=5)


@pytest.mark.parametrize("path", sorted(set(HOSTILE) - {"small-chunks"}))
def test_a_hostile_url_is_given_up_before_it_costs_much(url: str, path: str) -> None:
    """Without the bounds it costs the CPU of the whole timeout."""

    async def work(fetcher: Fetcher) -> None:
        before = time.thread_time()
        with pytest.raises(InvalidImage):
            await fetcher.fetch(f"{url}/{path}")
        assert time.thread_time() - before < 0.3

    run(work)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("good-lines", PICTURE),
        ("good-line-feeds", b"\n" * 200_000),
        ("good-continue", b"x"),
        ("good-trailer", b"x"),
    ],
)
def test_unusual_answers_are_not_taken_for_hostile_ones(url: str, path: str, body: bytes) -> None:
    async def work(fetcher: Fetcher) -> None:
        assert (await fetcher.fetch(f"{url}/{path}")).data == body

    run(work)
