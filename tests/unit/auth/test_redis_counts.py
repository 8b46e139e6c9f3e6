"""Limits that several gateways share, counted in a real Redis."""

import asyncio
import itertools
import signal
import time
from collections.abc import Awaitable

import hypothesis
import pytest
import redis as client
from helpers.limits import Redis, headers, limited, refused
from hypothesis import given
from hypothesis import strategies as st

from llava_gateway.auth import redis_counts
from llava_gateway.auth.api_keys import Key, digest
from llava_gateway.auth.rate_limits import KeyLease, RateLimited, RateLimits
from llava_gateway.auth.sliding_window import BUCKET, MINUTE, Change, Window
from llava_gateway.errors import Unavailable

pytestmark = pytest.mark.slow

BOB = Key("bob", digest("llava-bob"))


names = itertools.count()
amounts = st.integers(0, 40) | st.integers(0, 200)


@given(
    st.lists(
        st.tuples(
            st.integers(0, BUCKET * 2) | st.integers(0, MINUTE * 5),
            st.integers(1, 40) | st.just(20),
            amounts,
            amounts,
            st.integers(0, 30),
            amounts,
            st.just(0) | amounts,
        ),
        max_size=40,
    )
)
@hypothesis.settings(max_examples=150, deadline=None)
def test_redis_script_matches_the_window_in_memory(shared_redis: Redis, asked: list[tuple[int, ...]]) -> None:
    with client.Redis(port=shared_redis.port, db=1) as connection:
        by_our_clock = redis_counts.SCRIPT.replace("redis.call('TIME')", "redis.call('MGET', 'seconds', 'microseconds')")
        script = connection.register_script(by_our_clock)
        window, now, place, buckets = Window(), 1_700_000_000_000_000, f"place {next(names)}", [0]
        for pause, limit, least, most, which, unused, debt in asked:
            now += pause
            connection.mset({"seconds": now // 1_000_000, "microseconds": now % 1_000_000})
            change = Change(limit, least, max(least, most), buckets[which % len(buckets)], unused, debt)
            outcome = window.change(now, change)
            assert script([place], [MINUTE, BUCKET, *change]) == [list(outcome)]
            buckets.append(outcome.bucket)


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may need more than the two seconds that an operator's Redis has."""
    monkeypatch.setattr(redis_counts, "TIMEOUT", 60.0)


def test_gateways_with_one_redis_share_counts(redis: Redis) -> None:
    async def scenario() -> None:
        start = time.monotonic()
        one, other, memory = RateLimits(redis.url), RateLimits(redis.url), RateLimits()
        key = limited(requests_per_minute=120, tokens_per_minute=1000)
        admitted = await asyncio.gather(*((one, other)[number % 2].admit(key) for number in range(200)), return_exceptions=True)
        inside = [caller for caller in admitted if isinstance(caller, KeyLease)]
        assert len(inside) == 120
        assert all(isinstance(caller, (KeyLease, RateLimited)) for caller in admitted)
        refusal = await refused(other.admit(key))
        assert 59 - (time.monotonic() - start) <= (refusal.retry_after or 0) <= 60
        assert headers(refusal)["remaining-requests"] == "0"
        reserved = await asyncio.gather(*(caller.reserve(7, 100, answers=1) for caller in inside[:40]), return_exceptions=True)
        let_in = [caller for caller, outcome in zip(inside, reserved, strict=False) if outcome is None]
        assert len(let_in) == 10
        await asyncio.gather(*(caller.record_usage(70) for caller in let_in))
        await inside[50].reserve(200, 900, answers=1)
        assert headers(inside[50])["remaining-tokens"] == "0"
        await refused(inside[51].reserve(1, 1, answers=1))
        await inside[50].record_usage(5000)
        refusal = await refused(inside[51].reserve(300, 300, answers=1))
        assert 4 * 60 < (refusal.retry_after or 0) <= 5 * 60
        await memory.admit(key)
        await one.close()
        await other.close()

    asyncio.run(scenario())


def test_redis_keys_expire(redis: Redis) -> None:
    async def scenario() -> None:
        rates = RateLimits(redis.url)
        caller = await rates.admit(limited(requests_per_minute=9, tokens_per_minute=100))
        await caller.reserve(10, 100, answers=1)
        await (await rates.admit(limited(tokens_per_minute=9))).release()
        await rates.close()

    asyncio.run(scenario())
    with client.Redis(port=redis.port, db=1) as connection:
        left = [connection.pttl(key) for key in connection.scan_iter()]
    assert len(left) == 2
    assert all(60_000 <= milliseconds <= 120_000 for milliseconds in left)


def test_window_in_redis_stays_small(redis: Redis) -> None:
    async def scenario() -> None:
        rates, key = RateLimits(redis.url), limited(requests_per_minute=10**6)
        for _ in range(40):
            await asyncio.gather(*(rates.admit(key) for _ in range(25)))
        await rates.close()

    began = time.monotonic()
    asyncio.run(scenario())
    buckets = (time.monotonic() - began) * 1_000_000 // BUCKET + 2
    with client.Redis(port=redis.port, db=1) as connection:
        (size,) = [connection.strlen(key) for key in connection.scan_iter()]
    assert size <= 30 + 25 * buckets


def test_window_in_redis_moves_on_with_time(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_counts, "MINUTE", 1_000_000)

    async def scenario() -> None:
        rates, key = RateLimits(redis.url), limited(requests_per_minute=4)
        for _ in range(4):
            await rates.admit(key)
        refusal = await refused(rates.admit(key))
        await asyncio.sleep(refusal.retry_after or 0)
        await rates.admit(key)
        await rates.close()

    asyncio.run(scenario())


async def unavailable(work: Awaitable[object]) -> None:
    with pytest.raises(Unavailable) as refusal:
        await work
    assert (refusal.value.code, refusal.value.retry_after) == ("limits_unavailable", 5)
    assert "127.0.0.1" not in refusal.value.message


def test_lost_redis_refuses_keys_with_limits(redis: Redis, caplog: pytest.LogCaptureFixture) -> None:
    key = limited(requests_per_minute=60, tokens_per_minute=1000, concurrent=1)

    async def scenario() -> None:
        rates = RateLimits(redis.url)
        caller = await rates.admit(key)
        await caller.reserve(1, 1, answers=1)
        redis.__exit__()
        start = time.monotonic()
        await unavailable(caller.reserve(1, 1, answers=1))
        await caller.release()
        for _ in range(3):
            await unavailable(rates.admit(key))
        assert time.monotonic() - start < 30  # a lost connection is noticed at once; a timeout would take 60 s
        await rates.admit(BOB)
        assert [record.levelname for record in caplog.records] == ["ERROR"]
        redis.__enter__()
        back = await rates.admit(key)
        await back.reserve(1, 1)
        assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
        redis.__exit__()
        redis.__enter__()
        await back.reserve(1, 1)  # a Redis that came back while nobody asked was never gone
        assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
        redis.__exit__()
        await unavailable(back.reserve(1, 1))
        assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING", "ERROR"]
        await rates.close()

    asyncio.run(scenario())


def test_usage_is_recorded_after_a_redis_outage(redis: Redis) -> None:
    async def scenario() -> None:
        rates, key = RateLimits(redis.url), limited(tokens_per_minute=1000)
        caller = await rates.admit(key)
        await caller.reserve(10, 10, answers=1)
        redis.__exit__()
        await caller.record_usage(600)
        redis.__enter__()
        await rates.close()  # waits for what is still to be settled
        rates = RateLimits(redis.url)
        assert headers(await rates.admit(key))["remaining-tokens"] == "410"  # the reservation went with the old Redis
        await rates.close()

    asyncio.run(scenario())


def test_cancelled_settlement_is_completed(redis: Redis) -> None:
    async def scenario() -> None:
        rates, key = RateLimits(redis.url), limited(tokens_per_minute=1000)
        caller = await rates.admit(key)
        await caller.reserve(10, 1000, answers=1)
        leaving = asyncio.create_task(caller.record_usage(100))
        await asyncio.sleep(0)
        assert not leaving.done()
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        assert leaving.cancelled()
        await rates.close()
        assert headers(await rates.admit(key))["remaining-tokens"] == "900"
        await rates.close()

    asyncio.run(scenario())


def test_cancelled_admission_frees_its_slot(redis: Redis) -> None:
    async def scenario() -> None:
        rates, key = RateLimits(redis.url), limited(concurrent=1, requests_per_minute=9)
        leaving = asyncio.create_task(rates.admit(key))
        await asyncio.sleep(0)
        assert not leaving.done()
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        assert leaving.cancelled()
        await rates.admit(key)
        await rates.close()

    asyncio.run(scenario())


def test_silent_redis_times_out(redis: Redis, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(redis_counts, "TIMEOUT", 0.3)

    async def scenario() -> None:
        rates, key = RateLimits(redis.url), limited(requests_per_minute=1000)
        await rates.admit(key)
        redis.process.send_signal(signal.SIGSTOP)
        start = time.monotonic()
        ended = await asyncio.gather(*(rates.admit(key) for _ in range(100)), return_exceptions=True)
        assert time.monotonic() - start < 15  # one after the other, the 100 timeouts would take 30 s
        assert {type(end) for end in ended} == {Unavailable}
        assert len(caplog.records) == 1
        redis.process.send_signal(signal.SIGCONT)
        await rates.admit(key)
        await rates.close()

    asyncio.run(scenario())
