"""The limits of API keys: requests per minute, tokens per minute, and concurrent requests.

No sixty seconds exceed a key's limit. A sliding log counts requests and tokens, in this process or in a Redis that several gateways share.
Each process counts concurrent requests on its own. A key without limits is not counted.

The tokens of a request are reserved before it runs: its prompts, and its longest possible answers as far as the limit has room for them.
When the request ends, its unused tokens are returned. Tokens used beyond the reservation are a debt, which is taken from the limit in the
following minutes.
"""

import math
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

from llava_gateway.auth.api_keys import Key
from llava_gateway.auth.rate_counts import Counts, MemoryCounts
from llava_gateway.auth.redis_counts import RedisCounts
from llava_gateway.auth.sliding_window import Change, Outcome
from llava_gateway.errors import TooManyRequests

SECOND = 1_000_000
"""In microseconds, the unit of windows."""

LimitKind = Literal["requests", "tokens"]
Headers = list[tuple[bytes, bytes]]


class RateLimited(TooManyRequests):
    """The key has reached one of its limits."""

    code = "rate_limit_exceeded"

    def __init__(self, message: str, retry_after: int | None, headers: Headers) -> None:
        super().__init__(message, retry_after=retry_after)
        self.headers = headers
        """As from `KeyLease.headers`; empty if the limit of concurrent requests is reached."""


class RateLimits:
    """Counts the requests and tokens of API keys against their limits. Used from one event loop.

    A request reserves the tokens that it may use, and records the tokens that it has used:

        limits = RateLimits()
        async with limits.lease(key) as lease:
            await lease.reserve(prompt_tokens=700, total_tokens=1724, answers=1)
            await lease.record_usage(812)
    """

    def __init__(self, storage: str = "memory") -> None:
        """`storage`: `memory` or empty, or a redis:// or rediss:// URL. Raises ValueError for others, or without the Redis client."""
        self._counts: Counts = MemoryCounts() if storage in ("", "memory") else RedisCounts(storage)
        self._in_flight: Counter[str] = Counter()

    async def admit(self, key: Key) -> "KeyLease":
        """Count a request, and return its lease. The caller must release the lease.

        Raises RateLimited if the key has reached a limit, or Unavailable if the storage fails.
        """
        if key.concurrent is not None and self._in_flight[key.digest] >= key.concurrent:
            raise RateLimited(f"The key {key.name} may have {_plural(key.concurrent, 'request')} running at once.", 1, [])
        self._in_flight[key.digest] += 1
        lease = KeyLease(key, self._counts, self._release)
        try:
            await lease.count_request()
        except BaseException:
            await lease.release()
            raise
        return lease

    @asynccontextmanager
    async def lease(self, key: Key) -> AsyncIterator["KeyLease"]:
        """Count a request of the key. Within the block its lease is the current one. Raises as `admit`."""
        lease = await self.admit(key)
        token = _current.set(lease)
        try:
            yield lease
        finally:
            _current.reset(token)
            await lease.release()

    async def close(self) -> None:
        """Close the connections to the storage."""
        await self._counts.close()

    def _release(self, key: Key) -> None:
        self._in_flight[key.digest] -= 1
        if not self._in_flight[key.digest]:
            del self._in_flight[key.digest]


@dataclass(frozen=True, slots=True)
class Reservation:
    """Tokens that are reserved for a request."""

    tokens: int
    bucket: int
    """The bucket of the window in which they count."""


_current: ContextVar["KeyLease | None"] = ContextVar("key_lease", default=None)


def current_lease() -> "KeyLease | None":
    """Return the lease of the request that this code works for. None if the server asks for no key."""
    return _current.get()


class KeyLease:
    """The use of a key by one request, from the request's admission to its end."""

    def __init__(self, key: Key, counts: Counts, on_release: Callable[[Key], None]) -> None:
        """Create a lease; `RateLimits` does this. `on_release`: is called once, by `release`."""
        self.key = key
        self._counts = counts
        self._on_release = on_release
        self._in_flight = True
        limits: dict[LimitKind, int | None] = {"requests": key.requests_per_minute, "tokens": key.tokens_per_minute}
        self._per_minute = {kind: limit for kind, limit in limits.items() if limit is not None}
        self._outcomes: dict[LimitKind, Outcome] = {}
        """The last outcome of each limit."""
        self._reservations: list[Reservation] = []
        self._prompt_tokens = 0
        """Tokens reserved for prompts."""
        self._pending_answers = 0
        """Answers whose usage has not been recorded yet."""
        self._used = 0
        """Recorded tokens that have not been settled yet."""

    def allows(self, model: str) -> bool:
        """Return whether the key may use the model of this name."""
        return not self.key.models or model in self.key.models

    def headers(self) -> Headers:
        """Return OpenAI's `x-ratelimit-*` headers for the key's limits, as of the last change.

        `reset` is the time until the whole limit is available again.
        """
        return [header for kind, outcome in self._outcomes.items() for header in _headers(kind, self._per_minute[kind], outcome)]

    async def release(self) -> None:
        """End the request: it no longer counts as concurrent, and its unused tokens are returned. A second call does nothing."""
        if self._in_flight:
            self._in_flight = False
            self._on_release(self.key)
        await self._settle()

    async def count_request(self) -> None:
        """Count this request. Raises RateLimited and Unavailable."""
        if not self._per_minute:
            return
        costs = {"requests": 1, "tokens": 0}
        changes = [(self._window_name(kind), Change(limit, costs[kind], costs[kind])) for kind, limit in self._per_minute.items()]
        self._outcomes = dict(zip(self._per_minute, await self._counts.change(changes), strict=True))
        if (outcome := self._outcomes.get("requests")) and outcome.granted < 0:
            message = f"The key {self.key.name} may make {_plural(self._per_minute['requests'], 'request')} per minute."
            raise self._rate_limited(message, outcome)

    async def reserve(self, prompt_tokens: int, total_tokens: int, answers: int = 0) -> None:
        """Reserve tokens. Further calls reserve more.

        `prompt_tokens`: the tokens of the prompts. `total_tokens`: the tokens of the prompts and of their longest possible answers; as many
        are reserved as the limit has left. `answers`: the number of later calls of `record_usage`. Raises RateLimited if the limit has no
        room for the prompts, and Unavailable.
        """
        self._pending_answers += answers
        self._prompt_tokens += prompt_tokens
        limit = self._per_minute.get("tokens")
        if limit is None:
            return
        allowance = f"The key {self.key.name} may use {_plural(limit, 'token')} per minute"
        if self._prompt_tokens > limit:
            raise RateLimited(f"{allowance}. A prompt of {self._prompt_tokens} can never fit.", None, self.headers())
        (outcome,) = await self._counts.change([(self._window_name("tokens"), Change(limit, prompt_tokens, total_tokens))])
        self._outcomes["tokens"] = outcome
        if outcome.granted < 0:
            raise self._rate_limited(f"{allowance}, and this prompt has {self._prompt_tokens}.", outcome)
        self._reservations.append(Reservation(outcome.granted, outcome.bucket))

    async def record_usage(self, tokens: int) -> None:
        """Record the tokens that an answer and its prompt have used. After the last answer the reservations are settled."""
        self._pending_answers -= 1
        self._used += tokens
        if not self._pending_answers:
            await self._settle()

    async def _settle(self) -> None:
        """Return the unused tokens of all reservations, and record tokens beyond them as a debt. Raises nothing."""
        reservations, self._reservations = self._reservations, []
        used, self._used = self._used, 0
        if not reservations:
            return
        limit, name, changes = self._per_minute["tokens"], self._window_name("tokens"), []
        for reservation in reservations:
            taken = min(used, reservation.tokens)
            used -= taken
            changes.append(Change(limit, bucket=reservation.bucket, unused=reservation.tokens - taken))
        changes[-1] = changes[-1]._replace(debt=used)
        if outcomes := await self._counts.settle([(name, change) for change in changes]):
            self._outcomes["tokens"] = outcomes[-1]

    def _window_name(self, kind: LimitKind) -> str:
        """Return the name of the key's window. A part of the digest is in it, so that a new secret starts with an empty window."""
        return f"{kind}/{self.key.name}/{self.key.digest[:16]}"

    def _rate_limited(self, message: str, outcome: Outcome) -> RateLimited:
        return RateLimited(message, math.ceil(outcome.wait / SECOND), self.headers())


def duration(microseconds: int) -> str:
    """Return a duration in OpenAI's format: `0s`, `250ms`, `1.5s`, `6m0s`."""
    milliseconds = -(-microseconds // 1000)
    if 0 < milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    return (f"{minutes}m" if minutes else "") + f"{rest / 1000:g}s"


def _headers(kind: LimitKind, limit: int, outcome: Outcome) -> Headers:
    values = {"limit": str(limit), "remaining": str(outcome.remaining), "reset": duration(outcome.reset)}
    return [(f"x-ratelimit-{name}-{kind}".encode(), value.encode()) for name, value in values.items()]


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
