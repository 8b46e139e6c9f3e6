"""The same URL again: as often as HTTP says that it must be, and once for all who ask at the same time."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from ipaddress import ip_network
from typing import Any

import pytest
from helpers.origin import Origin
from hypothesis import given
from hypothesis import strategies as st

from llava_gateway.errors import InvalidImage
from llava_gateway.images.cache_control import Freshness, freshness
from llava_gateway.images.http_cache import Fetched, UrlImages
from llava_gateway.images.single_flight import SingleFlight
from llava_gateway.settings import Settings

NOW = datetime.now(UTC)


def run(work: Callable[[UrlImages], Awaitable[None]], **settings: Any) -> None:
    async def main() -> None:
        urls = UrlImages(Settings(allow_networks=(ip_network("127.0.0.0/8"),), **settings))
        try:
            await work(urls)
        finally:
            await urls.close()

    asyncio.run(main())


def asked(origin: Origin, path: str) -> int:
    return sum(request[0] == path for request in origin.requests)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, Freshness(0)),
        ({"cache-control": "max-age=60"}, Freshness(60)),
        ({"cache-control": "MAX-AGE=60, public", "age": "20"}, Freshness(40)),
        ({"cache-control": "max-age=60", "age": "100"}, Freshness(0)),
        ({"cache-control": "max-age=60, s-maxage=5"}, Freshness(5)),
        ({"cache-control": 'max-age="60"'}, Freshness(60)),
        ({"cache-control": "max-age=-1"}, Freshness(0)),
        ({"cache-control": "no-store, max-age=60"}, None),
        ({"cache-control": "private"}, None),
        ({"vary": "*", "cache-control": "max-age=60"}, None),
        ({"vary": "Accept", "cache-control": "max-age=60"}, Freshness(60)),
        ({"cache-control": "no-cache, max-age=60", "etag": "x"}, Freshness(0, "x")),
        ({"expires": format_datetime(NOW + timedelta(seconds=30)), "date": format_datetime(NOW)}, Freshness(30)),
        ({"expires": "0"}, Freshness(0)),
        ({"last-modified": "y"}, Freshness(0, None, "y")),
        ({"etag": "\xfc", "last-modified": "y"}, Freshness(0, None, "y")),
        ({"etag": "x\x01"}, Freshness(0)),
        ({"etag": "x\ty"}, Freshness(0)),
        ({"etag": "x" * 65536}, Freshness(0)),
        ({"last-modified": "\u017d"}, Freshness(0)),
        ({"expires": "1" * 65536}, Freshness(0)),
        ({"cache-control": "," * 65536}, None),
    ],
)
def test_freshness(headers: dict[str, str], expected: Freshness | None) -> None:
    assert freshness(headers) == expected


@given(st.dictionaries(st.sampled_from(["cache-control", "expires", "date", "age", "vary", "etag", "last-modified"]), st.text(max_size=30)))
def test_any_headers(headers: dict[str, str]) -> None:
    found = freshness(headers)
    assert found is None or found.seconds >= 0
    assert found is None or all(re.fullmatch("[ -~]*", value) for value in found.conditions.values())


def test_fresh_answers_are_not_asked_for_again(origin: Origin) -> None:
    async def work(urls: UrlImages) -> None:
        url = f"{origin.url}/cached"
        assert urls.fresh(url) is None
        fetched = await urls.fetch(url)
        assert urls.fresh(url) is fetched
        content = fetched.content
        del fetched
        await asyncio.sleep(0)
        assert urls.fresh(url) == Fetched(content, None)  # nobody has the file any longer

    run(work)


@pytest.mark.parametrize("path", ["/private", "/picture", "/to-cached"])
def test_what_may_not_be_kept_is_not(origin: Origin, path: str) -> None:
    async def work(urls: UrlImages) -> None:
        await urls.fetch(origin.url + path)
        assert urls.fresh(origin.url + path) is None

    run(work)


def test_no_time_to_live_keeps_nothing(origin: Origin) -> None:
    async def work(urls: UrlImages) -> None:
        await urls.fetch(f"{origin.url}/cached")
        assert urls.fresh(f"{origin.url}/cached") is None

    run(work, image_url_ttl=0)


def test_an_unchanged_picture_is_not_sent_again(origin: Origin) -> None:
    async def work(urls: UrlImages) -> None:
        url = f"{origin.url}/tagged"
        first = await urls.fetch(url)
        content, data = first.content, first.data
        assert data
        assert await urls.fetch(url) is first
        del first
        assert await urls.fetch(url) == Fetched(content, None)
        assert (await urls.fetch(url, anew=True)).data == data

    run(work)


@pytest.mark.parametrize("path", ["/odd-etag", "/odd-date"])
def test_a_validator_that_no_request_may_hold_does_not_fail_the_next_use(origin: Origin, path: str) -> None:
    async def work(urls: UrlImages) -> None:
        first = await urls.fetch(origin.url + path)
        assert (await urls.fetch(origin.url + path)).content == first.content

    run(work)


def test_known_urls_are_bounded_in_bytes(origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(urls: UrlImages) -> None:
        longer = [f"{origin.url}/cached?{number}{'x' * 8000}" for number in range(12)]
        for url in longer:
            await urls.fetch(url)
            await urls.fetch(url)  # known twice, counted once
            assert urls.bytes <= 100_000
        assert urls.fresh(longer[-1])
        assert not urls.fresh(longer[0])
        assert 80_000 < urls.bytes == sum(known.size(url) for url, known in urls._known.items())

    monkeypatch.setattr("llava_gateway.images.http_cache.MAX_BYTES", 100_000)
    run(work)


def test_equal_urls_at_once_are_fetched_once(origin: Origin) -> None:
    async def work(urls: UrlImages) -> None:
        before = asked(origin, "/slow")
        fetched = await asyncio.gather(*(urls.fetch(f"{origin.url}/slow") for _ in range(20)))
        assert len({each.content for each in fetched}) == 1
        assert asked(origin, "/slow") == before + 1

    run(work)


def test_an_error_is_everyones(origin: Origin) -> None:
    async def work(urls: UrlImages) -> None:
        ends = await asyncio.gather(*(urls.fetch(f"{origin.url}/missing") for _ in range(5)), return_exceptions=True)
        assert all(isinstance(end, InvalidImage) for end in ends)

    run(work)


def test_work_goes_on_as_long_as_anyone_waits() -> None:
    async def main() -> None:
        flight: SingleFlight[int] = SingleFlight()
        runs = ends = 0

        async def work() -> int:
            nonlocal runs, ends
            runs += 1
            try:
                await asyncio.sleep(0.2)
            finally:
                ends += 1
            return 7

        tasks = [asyncio.create_task(flight.do("x", work)) for _ in range(3)]
        await asyncio.sleep(0.05)
        tasks[0].cancel()
        assert [await task for task in tasks[1:]] == [7, 7]
        assert (runs, ends) == (1, 1)
        tasks = [asyncio.create_task(flight.do("x", work)) for _ in range(3)]
        await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert "x" not in flight
        assert await flight.do("x", work) == 7  # not the one that was cancelled
        assert (runs, ends) == (3, 3)

    asyncio.run(main())
