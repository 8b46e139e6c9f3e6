"""Hostile origins, whose responses are small but expensive to parse: they do not block the event loop or other fetches."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest
from helpers.hostile_origin import CONTENT, HOSTILE, Stalls, hostile_origin

from llava_gateway.errors import InvalidImage
from llava_gateway.images.fetch import Fetcher
from llava_gateway.settings import Settings

pytestmark = pytest.mark.slow

LONGEST_STALL = 0.2
"""Seconds of CPU time for which the event loop may be blocked. Without limits on the parser's work it is 0.5 to 6 seconds."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with hostile_origin() as url:
        yield url


def run(work: Callable[[Fetcher], Awaitable[None]], **settings: Any) -> None:
    async def main() -> None:
        defaults: dict[str, Any] = {"image_timeout": 3, "image_connect_timeout": 60, "image_read_timeout": 60, "max_image_mb": 1}
        defaults |= {"image_downloads": 64, "allow_networks": (ip_network("127.0.0.0/8"),)}
        fetcher = Fetcher(Settings(**defaults | settings))
        try:
            await work(fetcher)
        finally:
            await fetcher.close()

    asyncio.run(main())


@pytest.mark.parametrize("path", HOSTILE)
def test_32_hostile_urls_do_not_block_the_event_loop(url: str, path: str) -> None:
    async def work(fetcher: Fetcher) -> None:
        async with Stalls() as stalls:
            hostile = [asyncio.create_task(fetcher.fetch(f"{url}/{path}")) for _ in range(32)]
            await asyncio.sleep(0)  # each hostile fetch has started, with the short timeout
            fetcher.limits = replace(fetcher.limits, timeout=60)
            good = await fetcher.fetch(f"{url}/good")
            results = await asyncio.gather(*hostile, return_exceptions=True)
        assert good.data == CONTENT
        assert all(isinstance(result, InvalidImage) for result in results)
        assert stalls.longest < LONGEST_STALL

    run(work, image_timeout=2)


@pytest.mark.parametrize("path", sorted(set(HOSTILE) - {"small-chunks"}))
def test_a_hostile_url_does_not_use_the_cpu_until_its_timeout(url: str, path: str) -> None:
    """Without limits on the parser's work a fetch would use the CPU for the whole timeout of 3 seconds."""

    async def work(fetcher: Fetcher) -> None:
        before = time.thread_time()
        with pytest.raises(InvalidImage):
            await fetcher.fetch(f"{url}/{path}")
        assert time.thread_time() - before < 1

    run(work)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("good-lines", CONTENT),
        ("good-line-feeds", b"\n" * 200_000),
        ("good-continue", b"x"),
        ("good-trailer", b"x"),
    ],
)
def test_an_unusual_but_harmless_response_is_not_refused(url: str, path: str, body: bytes) -> None:
    async def work(fetcher: Fetcher) -> None:
        assert (await fetcher.fetch(f"{url}/{path}")).data == body

    run(work, image_timeout=60)
