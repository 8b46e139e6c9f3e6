"""The cache of image URLs: it obeys HTTP caching (RFC 9111), and concurrent fetches of one URL are shared."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from ipaddress import ip_network
from typing import Any

import pytest
from helpers.origin import Origin
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llava_gateway.errors import InvalidImage
from llava_gateway.images.cache_control import CacheLifetime, cache_lifetime
from llava_gateway.images.http_cache import FetchedFile, UrlCache
from llava_gateway.images.single_flight import SingleFlight
from llava_gateway.settings import Settings

NO_DEADLINE = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""On a busy machine an example may take longer than Hypothesis allows by default."""
NOW = datetime.now(UTC)
PATIENT = {"image_timeout": 120, "image_connect_timeout": 120, "image_read_timeout": 120}
"""Timeouts in seconds that do not expire on a busy machine."""


def run(work: Callable[[UrlCache], Awaitable[None]], **settings: Any) -> None:
    async def main() -> None:
        urls = UrlCache(Settings(allow_networks=(ip_network("127.0.0.0/8"),), **PATIENT | settings))
        try:
            await work(urls)
        finally:
            await urls.close()

    asyncio.run(main())


def request_count(origin: Origin, path: str) -> int:
    return sum(request[0] == path for request in origin.requests)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, CacheLifetime(0)),
        ({"cache-control": "max-age=60"}, CacheLifetime(60)),
        ({"cache-control": "MAX-AGE=60, public", "age": "20"}, CacheLifetime(40)),
        ({"cache-control": "max-age=60", "age": "100"}, CacheLifetime(0)),
        ({"cache-control": "max-age=60, s-maxage=5"}, CacheLifetime(5)),
        ({"cache-control": 'max-age="60"'}, CacheLifetime(60)),
        ({"cache-control": "max-age=-1"}, CacheLifetime(0)),
        ({"cache-control": "no-store, max-age=60"}, None),
        ({"cache-control": "private"}, None),
        ({"vary": "*", "cache-control": "max-age=60"}, None),
        ({"vary": "Accept", "cache-control": "max-age=60"}, CacheLifetime(60)),
        ({"cache-control": "no-cache, max-age=60", "etag": "x"}, CacheLifetime(0, "x")),
        ({"expires": format_datetime(NOW + timedelta(seconds=30)), "date": format_datetime(NOW)}, CacheLifetime(30)),
        ({"expires": "0"}, CacheLifetime(0)),
        ({"last-modified": "y"}, CacheLifetime(0, None, "y")),
        ({"etag": "\xfc", "last-modified": "y"}, CacheLifetime(0, None, "y")),
        ({"etag": "x\x01"}, CacheLifetime(0)),
        ({"etag": "x\ty"}, CacheLifetime(0)),
        ({"etag": "x" * 65536}, CacheLifetime(0)),
        ({"last-modified": "\u017d"}, CacheLifetime(0)),
        ({"expires": "1" * 65536}, CacheLifetime(0)),
        ({"cache-control": "," * 65536}, None),
    ],
)
def test_the_cache_lifetime_follows_rfc_9111(headers: dict[str, str], expected: CacheLifetime | None) -> None:
    assert cache_lifetime(headers) == expected


@NO_DEADLINE
@given(st.dictionaries(st.sampled_from(["cache-control", "expires", "date", "age", "vary", "etag", "last-modified"]), st.text(max_size=30)))
def test_no_header_fails_the_parser_or_gives_an_unsafe_validator(headers: dict[str, str]) -> None:
    found = cache_lifetime(headers)
    assert found is None or found.seconds >= 0
    assert found is None or all(re.fullmatch("[ -~]*", value) for value in found.conditional_headers.values())


def test_a_fresh_url_is_not_fetched_again(origin: Origin) -> None:
    async def work(urls: UrlCache) -> None:
        url = f"{origin.url}/cached"
        assert urls.get_fresh(url) is None
        fetched = await urls.fetch(url)
        assert urls.get_fresh(url) is fetched
        digest = fetched.digest
        del fetched
        await asyncio.sleep(0)
        assert urls.get_fresh(url) == FetchedFile(digest, None)  # no request holds the file in memory

    run(work)


@pytest.mark.parametrize("path", ["/private", "/picture", "/to-cached"])
def test_a_response_that_must_not_be_stored_is_not_stored(origin: Origin, path: str) -> None:
    async def work(urls: UrlCache) -> None:
        await urls.fetch(origin.url + path)
        assert urls.get_fresh(origin.url + path) is None

    run(work)


def test_a_ttl_of_zero_stores_nothing(origin: Origin) -> None:
    async def work(urls: UrlCache) -> None:
        await urls.fetch(f"{origin.url}/cached")
        assert urls.get_fresh(f"{origin.url}/cached") is None

    run(work, image_url_ttl=0)


def test_an_unchanged_image_is_not_sent_again(origin: Origin) -> None:
    async def work(urls: UrlCache) -> None:
        url = f"{origin.url}/tagged"
        first = await urls.fetch(url)
        digest, data = first.digest, first.data
        assert data
        assert await urls.fetch(url) is first
        del first
        assert await urls.fetch(url) == FetchedFile(digest, None)
        assert (await urls.fetch(url, reload=True)).data == data

    run(work)


@pytest.mark.parametrize("path", ["/odd-etag", "/odd-date"])
def test_a_validator_that_no_header_may_contain_does_not_fail_the_next_request(origin: Origin, path: str) -> None:
    async def work(urls: UrlCache) -> None:
        first = await urls.fetch(origin.url + path)
        assert (await urls.fetch(origin.url + path)).digest == first.digest

    run(work)


def test_the_cache_of_urls_is_limited_in_bytes(origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(urls: UrlCache) -> None:
        longer = [f"{origin.url}/cached?{number}{'x' * 8000}" for number in range(12)]
        for url in longer:
            await urls.fetch(url)
            await urls.fetch(url)  # stored twice, counted once
            assert urls.bytes <= 100_000
        assert urls.get_fresh(longer[-1])
        assert not urls.get_fresh(longer[0])
        assert 80_000 < urls.bytes == sum(entry.size(url) for url, entry in urls._entries.items())

    monkeypatch.setattr("llava_gateway.images.http_cache.MAX_BYTES", 100_000)
    run(work)


def test_concurrent_fetches_of_one_url_send_one_request(origin: Origin) -> None:
    async def work(urls: UrlCache) -> None:
        before = request_count(origin, "/slow")
        fetched = await asyncio.gather(*(urls.fetch(f"{origin.url}/slow") for _ in range(20)))
        assert len({each.digest for each in fetched}) == 1
        assert request_count(origin, "/slow") == before + 1

    run(work)


def test_every_caller_of_a_shared_fetch_gets_its_error(origin: Origin) -> None:
    async def work(urls: UrlCache) -> None:
        results = await asyncio.gather(*(urls.fetch(f"{origin.url}/missing") for _ in range(5)), return_exceptions=True)
        assert all(isinstance(result, InvalidImage) for result in results)

    run(work)


def test_a_shared_task_is_cancelled_only_with_its_last_caller() -> None:
    async def main() -> None:
        flight: SingleFlight[int] = SingleFlight()
        go_on = asyncio.Event()
        started = ended = 0

        async def work() -> int:
            nonlocal started, ended
            started += 1
            try:
                await go_on.wait()
            finally:
                ended += 1
            return 7

        async def start_callers() -> list[asyncio.Task[int]]:
            before = started
            callers = [asyncio.create_task(flight.do("x", work)) for _ in range(3)]
            while started == before:  # noqa: ASYNC110 # a test of the event loop's order
                await asyncio.sleep(0)
            return callers

        callers = await start_callers()
        callers[0].cancel()
        await asyncio.wait(callers[:1])
        go_on.set()
        assert [await caller for caller in callers[1:]] == [7, 7]
        assert (started, ended) == (1, 1)
        go_on.clear()
        callers = await start_callers()
        for caller in callers:
            caller.cancel()
        await asyncio.wait(callers)
        assert "x" not in flight
        go_on.set()
        assert await flight.do("x", work) == 7  # a new task, and not the cancelled one
        assert (started, ended) == (3, 3)

    asyncio.run(asyncio.wait_for(main(), 120))
