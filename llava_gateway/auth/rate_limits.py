"""What a key may use in a minute, and how many requests at once. No sixty seconds have more than a key's limit: a sliding log counts them,
here or in a Redis that several gateways share. Requests at once are counted in each process by itself. A key without limits is not counted.

The tokens of a request are reserved before it is worked on: its prompts and its longest answers, or what is left for these if that is less.
When it ends, what it has not used is given back. What it has used beyond its reservation is a debt, which takes room in the minutes that
follow until all of it has had some.
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
"""In the unit of windows."""

What = Literal["requests", "tokens"]
Headers = list[tuple[bytes, bytes]]


class RateLimited(TooManyRequests):
    code = "rate_limit_exceeded"

    def __init__(self, message: str, retry_after: int | None, headers: Headers) -> None:
        super().__init__(message, retry_after=retry_after)
        self.headers = headers
        """As `KeyLease.headers`. None of a refusal for requests at once."""


class RateLimits:
    """Used from one event loop."""

    def __init__(self, storage: str = "memory") -> None:
        """`memory` (or nothing) or a redis:// or rediss:// URL; ValueError if it is neither, or if Redis' client is not installed."""
        self._counts: Counts = MemoryCounts() if storage in ("", "memory") else RedisCounts(storage)
        self._in_flight: Counter[str] = Counter()

    async def admit(self, key: Key) -> "KeyLease":
        """Counts a request; whoever gets a Caller has to `leave` it. Raises RateLimited, or Unavailable if the storage is."""
        if key.concurrent is not None and self._in_flight[key.digest] >= key.concurrent:
            raise RateLimited(f"The key {key.name} may have {_number(key.concurrent, 'request')} running at once.", 1, [])
        self._in_flight[key.digest] += 1
        lease = KeyLease(key, self._counts, self._leave)
        try:
            await lease.count()
        except BaseException:
            await lease.leave()
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
            await lease.leave()

    async def close(self) -> None:
        await self._counts.close()

    def _leave(self, key: Key) -> None:
        self._in_flight[key.digest] -= 1
        if not self._in_flight[key.digest]:
            del self._in_flight[key.digest]


@dataclass(frozen=True, slots=True)
class Reservation:
    tokens: int
    bucket: int
    """Of the window, where it counts."""


_current: ContextVar["KeyLease | None"] = ContextVar("key_lease", default=None)


def current_lease() -> "KeyLease | None":
    """Return the lease of the request that this code works for. None if the server asks for no key."""
    return _current.get()


class KeyLease:
    """One request of a key, from its admission until it ends."""

    def __init__(self, key: Key, counts: Counts, on_leave: Callable[[Key], None]) -> None:
        self.key = key
        self._counts = counts
        self._on_leave = on_leave
        self._in_flight = True
        given: dict[What, int | None] = {"requests": key.requests_per_minute, "tokens": key.tokens_per_minute}
        self._per_minute = {what: limit for what, limit in given.items() if limit is not None}
        self._seen: dict[What, Outcome] = {}
        self._reservations: list[Reservation] = []
        self._prompts = 0
        """Tokens that are reserved for them."""
        self._answers = 0
        """That are still to be booked."""
        self._used = 0
        """Tokens of those that have been."""

    def allows(self, model: str) -> bool:
        return not self.key.models or model in self.key.models

    def headers(self) -> Headers:
        """OpenAI's `x-ratelimit-*` for the limits that the key has, as they were when they were last changed. The reset is when all of the
        limit is there again."""
        return [header for what, seen in self._seen.items() for header in _headers(what, self._per_minute[what], seen)]

    async def leave(self) -> None:
        """Free the place among those at once, and settle what is still reserved. Again: nothing."""
        if self._in_flight:
            self._in_flight = False
            self._on_leave(self.key)
        await self._settle()

    async def count(self) -> None:
        """This request. Raises RateLimited and Unavailable."""
        if not self._per_minute:
            return
        costs = {"requests": 1, "tokens": 0}
        changes = [(self._place(what), Change(limit, costs[what], costs[what])) for what, limit in self._per_minute.items()]
        self._seen = dict(zip(self._per_minute, await self._counts.change(changes), strict=True))
        if (seen := self._seen.get("requests")) and seen.granted < 0:
            raise self._refusal(f"The key {self.key.name} may make {_number(self._per_minute['requests'], 'request')} per minute.", seen)

    async def reserve(self, prompts: int, whole: int, answers: int = 0) -> None:
        """Tokens: those of prompts, and of the prompts with their longest answers (`whole`), or what is left if that is less. Each of so
        many `answers` is to be booked. Again: for more. Raises RateLimited if too little is left for the prompts, and Unavailable."""
        self._answers += answers
        self._prompts += prompts
        limit = self._per_minute.get("tokens")
        if limit is None:
            return
        may = f"The key {self.key.name} may use {_number(limit, 'token')} per minute"
        if self._prompts > limit:
            raise RateLimited(f"{may}. A prompt of {self._prompts} can never fit.", None, self.headers())
        (seen,) = await self._counts.change([(self._place("tokens"), Change(limit, prompts, whole))])
        self._seen["tokens"] = seen
        if seen.granted < 0:
            raise self._refusal(f"{may}, and this prompt has {self._prompts}.", seen)
        self._reservations.append(Reservation(seen.granted, seen.bucket))

    async def record_usage(self, tokens: int) -> None:
        """What an answer and its prompt have used. After the last of the answers nothing is reserved any more."""
        self._answers -= 1
        self._used += tokens
        if not self._answers:
            await self._settle()

    async def _settle(self) -> None:
        """Raises nothing."""
        reservations, self._reservations = self._reservations, []
        used, self._used = self._used, 0
        if not reservations:
            return
        limit, place, changes = self._per_minute["tokens"], self._place("tokens"), []
        for reservation in reservations:
            taken = min(used, reservation.tokens)
            used -= taken
            changes.append(Change(limit, bucket=reservation.bucket, unused=reservation.tokens - taken))
        changes[-1] = changes[-1]._replace(debt=used)
        if seen := await self._counts.settle([(place, change) for change in changes]):
            self._seen["tokens"] = seen[-1]

    def _place(self, what: What) -> str:
        """A name that is given to a new secret begins anew."""
        return f"{what}/{self.key.name}/{self.key.digest[:16]}"

    def _refusal(self, message: str, seen: Outcome) -> RateLimited:
        return RateLimited(message, math.ceil(seen.wait / SECOND), self.headers())


def duration(microseconds: int) -> str:
    """As OpenAI writes one: `0s`, `250ms`, `1.5s`, `6m0s`."""
    milliseconds = -(-microseconds // 1000)
    if 0 < milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    return (f"{minutes}m" if minutes else "") + f"{rest / 1000:g}s"


def _headers(what: What, limit: int, seen: Outcome) -> Headers:
    values = {"limit": str(limit), "remaining": str(seen.remaining), "reset": duration(seen.reset)}
    return [(f"x-ratelimit-{name}-{what}".encode(), value.encode()) for name, value in values.items()]


def _number(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
