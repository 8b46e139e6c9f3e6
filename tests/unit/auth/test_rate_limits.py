"""Limits of keys: no sixty seconds let through more than their number, what is reserved is settled, and debts are paid."""

import asyncio
import re
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import hypothesis
import pytest
from helpers.limits import headers, limited, refused, stopped_clock
from hypothesis import given
from hypothesis import strategies as st

from llava_gateway.auth.api_keys import Key, digest
from llava_gateway.auth.rate_counts import MemoryCounts
from llava_gateway.auth.rate_limits import KeyLease, RateLimits, duration
from llava_gateway.auth.sliding_window import BUCKET, MINUTE, Change, Window

BOB = Key("bob", digest("llava-bob"))


@pytest.fixture
def clock() -> Iterator[SimpleNamespace]:
    with stopped_clock() as stopped:
        yield stopped


pauses = st.one_of(st.integers(0, BUCKET * 2), st.integers(0, MINUTE * 3), st.sampled_from([0, BUCKET, MINUTE - 1, MINUTE, MINUTE + 1]))
costs = st.integers(1, 30)


@given(st.integers(1, 40), st.lists(st.tuples(pauses, costs), max_size=60))
@hypothesis.settings(deadline=None)
def test_no_sixty_seconds_exceed_the_limit(limit: int, asked: list[tuple[int, int]]) -> None:
    window, now, through = Window(), 0, list[tuple[int, int]]()
    for pause, cost in asked:
        now += pause
        if window.change(now, Change(limit, cost, cost)).granted == cost:
            through.append((now, cost))
    for start, _ in through:
        assert sum(cost for time, cost in through if start <= time < start + MINUTE) <= limit


@given(st.integers(1, 40), st.lists(st.tuples(pauses, costs, st.integers(0, 200)), max_size=40))
@hypothesis.settings(deadline=None)
def test_nothing_is_granted_before_debts_are_paid(limit: int, asked: list[tuple[int, int, int]]) -> None:
    """However many minutes a debt fills, each of them takes a limit's worth of it."""
    window, now, used = Window(), 0, list[tuple[int, int]]()
    for pause, cost, debt in asked:
        now += pause
        outcome = window.change(now, Change(limit, cost, cost))
        if outcome.granted == cost:
            used.append((now, cost))
            for start, _ in used:
                minutes = (now - start) // MINUTE + 1
                assert sum(cost for time, cost in used if time >= start) <= limit * minutes
        elif cost <= limit:
            assert outcome.wait > 0
        window.change(now, Change(limit, debt=debt))
        used.append((now, debt))


@given(st.integers(1, 40), st.lists(st.tuples(pauses, costs, st.integers(0, 90)), max_size=30), costs)
@hypothesis.settings(deadline=None)
def test_retry_after_is_exact(limit: int, before: list[tuple[int, int, int]], cost: int) -> None:
    window, now, cost = Window(), 0, min(cost, limit)
    for pause, spent, debt in before:
        now += pause
        window.change(now, Change(limit, spent, spent, debt=debt))
    outcome = window.change(now, Change(limit, cost, cost))
    if outcome.granted < 0:
        assert window.change(now + outcome.wait - 1, Change(limit, cost, cost)).granted < 0
        assert window.change(now + outcome.wait, Change(limit, cost, cost)).granted == cost


@given(st.integers(1, 10**6), st.lists(st.tuples(st.integers(0, BUCKET), costs), min_size=200, max_size=400))
@hypothesis.settings(max_examples=20, deadline=None)
def test_window_stays_small_with_many_costs(limit: int, asked: list[tuple[int, int]]) -> None:
    window, now = Window(), 0
    for pause, cost in asked * 3:
        now += pause
        window.change(now, Change(limit, 0, cost))
        assert len(window._log) <= MINUTE // BUCKET + 1


def test_huge_debt_is_computed_at_once() -> None:
    window = Window()
    for second in range(100):
        window.change(second * 1_000_000, Change(100, 1, 1))
    window.change(100_000_000, Change(100, debt=100 * 1_000_000))
    before = window.change(100_000_000, Change(100, 1)).wait
    after = window.change(100_000_000 + 999_000 * MINUTE, Change(100, 1)).wait
    assert before - after == 999_000 * MINUTE


def test_changed_limit_takes_effect_at_once() -> None:
    window = Window()
    assert window.change(0, Change(100, 90, 90)).granted == 90
    lowered = window.change(1, Change(50, 1, 1))
    assert (lowered.granted, lowered.remaining, lowered.wait) == (-1, 0, MINUTE - 1)
    window.change(1, Change(50, debt=20))
    assert window.change(1, Change(200, 90, 90)).remaining == 0
    assert window.change(1, Change(200, 1, 1)).granted == -1


def test_burst_at_the_end_of_a_minute_blocks_the_next(clock: SimpleNamespace) -> None:
    """Counting by two minutes let through 20 within 59.5 seconds."""

    async def scenario() -> None:
        rates, key, through = RateLimits(), limited(requests_per_minute=10), list[float]()
        clock.now += 59
        start = clock.now
        while clock.now < start + 180:
            try:
                await rates.admit(key)
                through.append(clock.now)
            except Exception as error:
                assert getattr(error, "status", 0) == 429
                clock.now += 0.25
        assert len(through) == 30
        for first in through:
            assert sum(first <= time < first + 60 for time in through) <= 10

    asyncio.run(scenario())


def test_requests_per_minute(clock: SimpleNamespace) -> None:
    async def scenario() -> None:
        rates, key = RateLimits(), limited(requests_per_minute=3)
        assert [headers(await rates.admit(key))["remaining-requests"] for _ in range(3)] == ["2", "1", "0"]
        refusal = await refused(rates.admit(key))
        assert refusal.message == "The key carol may make 3 requests per minute."
        assert headers(refusal) == {"limit-requests": "3", "remaining-requests": "0", "reset-requests": "1m0s"}
        await rates.admit(Key("dave", digest("dave"), requests_per_minute=1))
        await rates.admit(Key("carol", digest("carol's new secret"), requests_per_minute=1))
        assert refusal.retry_after == 60
        clock.now += 59.9
        await refused(rates.admit(key))
        clock.now += 0.1
        await rates.admit(key)

    asyncio.run(scenario())


@pytest.mark.usefixtures("clock")
def test_tokens_per_minute() -> None:
    async def scenario() -> None:
        rates, key = RateLimits(), limited(tokens_per_minute=1000)
        await (await rates.admit(key)).reserve(600, 600, answers=1)
        caller = await rates.admit(key)
        refusal = await refused(caller.reserve(500, 900, answers=1))
        assert refusal.message == "The key carol may use 1000 tokens per minute, and this prompt has 500."
        assert refusal.retry_after == 60
        assert headers(refusal)["remaining-tokens"] == headers(caller)["remaining-tokens"] == "400"
        await (await rates.admit(key)).reserve(400, 400, answers=1)
        never = await refused((await rates.admit(key)).reserve(1001, 1001, answers=1))
        assert never.message == "The key carol may use 1000 tokens per minute. A prompt of 1001 can never fit."
        assert never.retry_after is None

    asyncio.run(scenario())


def test_concurrent_requests_share_the_request_limit(clock: SimpleNamespace) -> None:
    """40 of 500 tokens at once, which booked their answers afterwards, used 20,240 of 1,000."""

    async def scenario() -> None:
        rates, key, waits = RateLimits(), limited(tokens_per_minute=1000), list[int | None]()
        inside = list[KeyLease]()

        async def ask() -> None:
            caller = await rates.admit(key)
            try:
                await caller.reserve(10, 500, answers=1)
                inside.append(caller)
            except Exception as error:
                waits.append(getattr(error, "retry_after", None))
                await caller.leave()

        await asyncio.gather(*(ask() for _ in range(40)))
        assert len(inside) == 2
        assert waits == [60] * 38
        for caller in inside:
            await caller.record_usage(500)
        await ask()
        assert len(inside) == 2
        clock.now += 60
        await asyncio.gather(*(ask() for _ in range(40)))
        assert len(inside) == 4

    asyncio.run(scenario())


@pytest.mark.usefixtures("clock")
def test_unused_reservation_is_given_back() -> None:
    async def scenario() -> None:
        rates, key = RateLimits(), limited(tokens_per_minute=1000)
        caller = await rates.admit(key)
        await caller.reserve(30, 930, answers=3)
        await caller.record_usage(100)
        await caller.record_usage(50)
        assert headers(caller)["remaining-tokens"] == "70"  # the third may still use all of it
        await caller.record_usage(50)
        assert headers(caller)["remaining-tokens"] == "800"
        await caller.leave()
        refused_later = await rates.admit(key)
        await refused_later.reserve(700, 800, answers=1)
        assert headers(refused_later)["remaining-tokens"] == "0"
        await refused_later.leave()  # without an answer
        await refused_later.leave()
        assert headers(await rates.admit(key))["remaining-tokens"] == "800"

    asyncio.run(scenario())


def test_request_gets_the_remaining_tokens_and_owes_the_rest(clock: SimpleNamespace) -> None:
    async def scenario() -> None:
        rates, key = RateLimits(), limited(tokens_per_minute=100)
        caller = await rates.admit(key)
        await caller.reserve(10, 400, answers=1)
        assert headers(caller)["remaining-tokens"] == "0"
        await caller.record_usage(350)  # 100 now, 100 in each of the next two minutes, then 50
        assert headers(caller)["reset-tokens"] == "4m0s"
        refusal = await refused((await rates.admit(key)).reserve(51, 51, answers=1))
        assert refusal.retry_after == 240
        assert (await refused((await rates.admit(key)).reserve(50, 50, answers=1))).retry_after == 180
        clock.now += 179.9
        await refused((await rates.admit(key)).reserve(1, 1, answers=1))
        clock.now += 0.1
        half = await rates.admit(key)
        await half.reserve(1, 400, answers=1)
        await half.record_usage(50)
        await refused((await rates.admit(key)).reserve(1, 1, answers=1))

    asyncio.run(scenario())


@pytest.mark.usefixtures("clock")
def test_grown_prompt_is_reserved_in_full() -> None:
    """Pictures whose size decides their tokens: known once they are loaded."""

    async def scenario() -> None:
        rates, key = RateLimits(), limited(tokens_per_minute=1000)
        caller = await rates.admit(key)
        await caller.reserve(100, 200, answers=1)
        await caller.reserve(300, 300)
        assert headers(caller)["remaining-tokens"] == "500"
        other = await rates.admit(key)
        await other.reserve(100, 100, answers=1)
        refusal = await refused(other.reserve(401, 401))
        assert refusal.message == "The key carol may use 1000 tokens per minute, and this prompt has 501."
        await other.leave()
        assert (await refused(caller.reserve(900, 900))).retry_after is None
        await caller.record_usage(350)
        assert headers(caller)["remaining-tokens"] == "650"

    asyncio.run(scenario())


def test_concurrent_limit_refuses_one_more(clock: SimpleNamespace) -> None:
    async def scenario() -> None:
        rates, key = RateLimits(), limited(concurrent=2, requests_per_minute=4)
        first, second = await rates.admit(key), await rates.admit(key)
        for _ in range(9):  # none of which is counted
            refusal = await refused(rates.admit(key))
            assert refusal.message == "The key carol may have 2 requests running at once."
            assert refusal.retry_after == 1
        await rates.admit(Key("dave", digest("dave"), concurrent=1))
        await first.leave()
        await first.leave()
        third = await rates.admit(key)
        await refused(rates.admit(key))
        await second.leave()
        await third.leave()
        await (await rates.admit(key)).leave()
        for _ in range(3):  # whoever is refused by the minute leaves no place taken
            assert "per minute" in (await refused(rates.admit(key))).message
        clock.now += 120
        await rates.admit(key)
        await rates.admit(key)

    asyncio.run(scenario())


@pytest.mark.parametrize("key", [BOB, limited(concurrent=1)])
def test_key_without_limits_is_not_counted(key: Key) -> None:
    async def scenario() -> None:
        rates = RateLimits("redis://127.0.0.1:1")  # where nobody listens
        caller = await rates.admit(key)
        await caller.reserve(10**9, 10**9, answers=1)
        await caller.record_usage(10**9)
        assert caller.headers() == []
        await caller.leave()
        await rates.close()

    asyncio.run(scenario())


@pytest.mark.usefixtures("clock")
def test_rate_limit_headers_match_openai() -> None:
    async def scenario() -> None:
        rates = RateLimits()
        caller = await rates.admit(limited(requests_per_minute=60, tokens_per_minute=1000))
        assert caller.headers()[3:] == [
            (b"x-ratelimit-limit-tokens", b"1000"),
            (b"x-ratelimit-remaining-tokens", b"1000"),
            (b"x-ratelimit-reset-tokens", b"0s"),
        ]
        await caller.reserve(100, 100, answers=1)
        assert caller.headers() == [
            (b"x-ratelimit-limit-requests", b"60"),
            (b"x-ratelimit-remaining-requests", b"59"),
            (b"x-ratelimit-reset-requests", b"1m0s"),
            (b"x-ratelimit-limit-tokens", b"1000"),
            (b"x-ratelimit-remaining-tokens", b"900"),
            (b"x-ratelimit-reset-tokens", b"1m0s"),
        ]
        only_tokens = await rates.admit(Key("dave", digest("dave"), tokens_per_minute=1))
        assert [name for name, _ in only_tokens.headers()] == [name for name, _ in caller.headers()][3:]

    asyncio.run(scenario())


def test_idle_keys_take_no_memory(clock: SimpleNamespace) -> None:
    async def scenario() -> None:
        rates = RateLimits()
        assert isinstance(rates._counts, MemoryCounts)
        for number in range(100):
            await rates.admit(Key(f"key-{number}", digest(str(number)), requests_per_minute=9))
        clock.now += 61
        await rates.admit(limited(requests_per_minute=9))
        assert len(rates._counts._windows) == 1

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("microseconds", "written"),
    [
        (0, "0s"),
        (1, "1ms"),
        (250_000, "250ms"),
        (999_900, "1s"),
        (1_000_000, "1s"),
        (8_640_000, "8.64s"),
        (59_999_000, "59.999s"),
        (360_000_000, "6m0s"),
        (86_400_000, "1m26.4s"),
    ],
)
def test_durations_match_openai(microseconds: int, written: str) -> None:
    assert duration(microseconds) == written


def test_key_is_limited_to_its_models() -> None:
    async def scenario() -> None:
        rates = RateLimits()
        all_of_them, one = await rates.admit(BOB), await rates.admit(Key("alice", digest("alice"), ("llava-demo",)))
        assert all_of_them.allows("anything")
        assert one.allows("llava-demo")
        assert not one.allows("llava")

    asyncio.run(scenario())


@pytest.mark.parametrize("url", ["http://:passw0rd@host", "redis", "redis://:passw0rd@host:port", "redis://:passw0rd@host:6379x/0"])
def test_error_about_the_storage_hides_the_password(url: str) -> None:
    with pytest.raises(ValueError, match=r"[Rr]edis") as refusal:
        RateLimits(url)
    assert "passw0rd" not in str(refusal.value)


def test_missing_redis_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    with pytest.raises(ValueError, match=re.escape("llava-gateway[redis]")):
        RateLimits("redis://localhost")
