"""What a key may use in a minute, and how many requests at once. Minutes are counted by a sliding window, here or in a Redis that several
gateways share; requests at once in each process by itself. Nothing is asked of the storage for a key that has no limits.
"""

import asyncio
import logging
import math
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

from limits.aio.storage import MemoryStorage, RedisStorage
from limits.errors import StorageError

from llava_gateway.errors import TooManyRequests, Unavailable
from llava_gateway.keys.store import Key

log = logging.getLogger(__name__)

MINUTE = 60
TIMEOUT = 2.0
"""Seconds that Redis gets to count one request, connecting included."""
PRECISION = 0.001
"""Seconds: Redis counts no finer."""
CONNECTIONS = 32
"""To Redis, at most."""

What = Literal["requests", "tokens"]
Headers = list[tuple[bytes, bytes]]


class RateLimited(TooManyRequests):
    code = "rate_limit_exceeded"

    def __init__(self, message: str, retry_after: int | None, headers: Headers) -> None:
        super().__init__(message, retry_after=retry_after)
        self.headers = headers
        """As `Caller.headers`. None of a refusal for requests at once."""


@dataclass(frozen=True, slots=True)
class Window:
    """How far a limit is used. The last minute counts in full, the one before it by the part that is still within sixty seconds."""

    limit: int
    previous: int
    previous_left: float
    """Seconds until the previous minute counts no more."""
    current: int
    current_left: float
    """Likewise the current one, which by then has been the previous one for a minute."""

    @property
    def remaining(self) -> int:
        return max(0, self.limit - math.floor(self.previous * self.previous_left / MINUTE) - self.current)

    def wait(self, cost: int) -> float:
        """Seconds until `cost`, at most the limit, fits; 0 if it does."""
        if cost <= self.remaining:
            return 0
        if self.current + cost <= self.limit:
            return self.previous_left - (self.limit - self.current - cost + 1) * MINUTE / self.previous
        return self.current_left - (self.limit - cost + 1) * MINUTE / self.current

    def headers(self, what: What) -> Headers:
        """The reset is when all of the limit is there again."""
        values = {"limit": str(self.limit), "remaining": str(self.remaining), "reset": duration(self.wait(self.limit))}
        return [(f"x-ratelimit-{name}-{what}".encode(), value.encode()) for name, value in values.items()]


class RateLimits:
    """Used from one event loop."""

    def __init__(self, storage: str = "memory") -> None:
        """`memory` (or nothing) or a redis:// or rediss:// URL; ValueError if it is neither, or if Redis' client is not installed."""
        self._counts = _Counts(storage)
        self._inside: Counter[str] = Counter()

    async def admit(self, key: Key) -> "Caller":
        """Counts a request; whoever gets a Caller has to `leave` it. Raises RateLimited, or Unavailable if the storage is."""
        if key.concurrent is not None and self._inside[key.digest] >= key.concurrent:
            raise RateLimited(f"The key {key.name} may have {_number(key.concurrent, 'request')} running at once.", 1, [])
        self._inside[key.digest] += 1
        caller = Caller(key, self._counts, self._leave)
        try:
            await caller.count()
        except BaseException:
            caller.leave()
            raise
        return caller

    async def close(self) -> None:
        await self._counts.close()

    def _leave(self, key: Key) -> None:
        self._inside[key.digest] -= 1
        if not self._inside[key.digest]:
            del self._inside[key.digest]


class Caller:
    """One request of a key, from its admission until it leaves."""

    def __init__(self, key: Key, counts: "_Counts", on_leave: Callable[[Key], None]) -> None:
        self.key = key
        self._counts = counts
        self._on_leave = on_leave
        self._inside = True
        given: dict[What, int | None] = {"requests": key.requests_per_minute, "tokens": key.tokens_per_minute}
        self._per_minute = {what: limit for what, limit in given.items() if limit is not None}
        self._windows: dict[What, Window] = {}

    def allows(self, model: str) -> bool:
        return not self.key.models or model in self.key.models

    def headers(self) -> Headers:
        """OpenAI's `x-ratelimit-*` for the limits that the key has, as they were when something was last asked of them."""
        return [header for what, window in self._windows.items() for header in window.headers(what)]

    def leave(self) -> None:
        """Free the place among those at once. Again: nothing."""
        if self._inside:
            self._inside = False
            self._on_leave(self.key)

    async def count(self) -> None:
        """This request. Raises RateLimited and Unavailable."""
        if not self._per_minute:
            return
        limit = self._per_minute.get("requests")
        async with self._counts.reachable():
            counted = limit is None or await self._counts.take(self.key, "requests", limit, 1)
            read = await asyncio.gather(*(self._counts.window(self.key, what, most) for what, most in self._per_minute.items()))
        self._windows = dict(zip(self._per_minute, read, strict=True))
        if limit is not None and not counted:
            raise self._refusal(f"The key {self.key.name} may make {_number(limit, 'request')} per minute.", "requests", 1)

    async def check(self, tokens: int) -> None:
        """Whether prompts of so many tokens together would be let through now. Raises RateLimited and Unavailable."""
        await self._spend(tokens, charge=False)

    async def charge(self, tokens: int) -> None:
        """A prompt's tokens, before it is worked on. Raises RateLimited and Unavailable."""
        await self._spend(tokens, charge=True)

    async def _spend(self, tokens: int, *, charge: bool) -> None:
        limit = self._per_minute.get("tokens")
        if limit is None:
            return
        async with self._counts.reachable():
            charged = not charge or await self._counts.take(self.key, "tokens", limit, tokens)
            window = self._windows["tokens"] = await self._counts.window(self.key, "tokens", limit)
        may = f"The key {self.key.name} may use {_number(limit, 'token')} per minute"
        if tokens > limit:
            raise RateLimited(f"{may}. A prompt of {tokens} can never fit.", None, self.headers())
        if not charged or (not charge and tokens > window.remaining):
            raise self._refusal(f"{may}, and this prompt has {tokens}.", "tokens", tokens)

    async def book(self, tokens: int) -> None:
        """An answer's tokens, after the fact. Of more than is left, all that is left. Raises nothing: what cannot be counted is lost."""
        limit = self._per_minute.get("tokens")
        if limit is None:
            return
        try:
            async with self._counts.reachable():
                while cost := min(tokens, (await self._counts.window(self.key, "tokens", limit)).remaining):
                    if await self._counts.take(self.key, "tokens", limit, cost):
                        break
        except Unavailable:
            log.debug("%d tokens of the key %s are not booked", tokens, self.key.name)

    def _refusal(self, message: str, what: What, cost: int) -> RateLimited:
        return RateLimited(message, int(self._windows[what].wait(cost) + PRECISION) + 1, self.headers())


class _Counts:
    """The storage, by key and by what is counted."""

    def __init__(self, storage: str) -> None:
        self._pool = None if storage in ("", "memory") else _redis_pool(storage)
        self._storage: MemoryStorage | RedisStorage = MemoryStorage()
        if self._pool is not None:
            self._storage = RedisStorage("async+redis://", wrap_exceptions=True, implementation="redispy", connection_pool=self._pool)
        self._failing = False

    async def take(self, key: Key, what: What, limit: int, cost: int) -> bool:
        """All of `cost` or nothing."""
        return await self._storage.acquire_sliding_window_entry(_place(key, what), limit, MINUTE, cost)

    async def window(self, key: Key, what: What, limit: int) -> Window:
        return Window(limit, *await self._storage.get_sliding_window(_place(key, what), MINUTE))

    @asynccontextmanager
    async def reachable(self) -> AsyncIterator[None]:
        """Around what is asked here. Raises Unavailable if that fails or takes too long; logs when an outage begins and ends."""
        try:
            async with asyncio.timeout(TIMEOUT):
                yield
        except (StorageError, OSError) as error:
            if not self._failing:
                self._failing = True
                log.error("keys with limits are refused, for their requests cannot be counted: %s", str(error) or "Redis is silent")
            raise Unavailable("The server cannot count requests now.", code="limits_unavailable", retry_after=5) from error
        if self._failing:
            self._failing = False
            log.warning("requests can be counted again")

    async def close(self) -> None:
        if self._pool is not None:
            await self._pool.disconnect()


def duration(seconds: float) -> str:
    """As OpenAI writes one: `0s`, `250ms`, `1.5s`, `6m0s`."""
    milliseconds = math.ceil(seconds * 1000)
    if 0 < milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, MINUTE * 1000)
    return (f"{minutes}m" if minutes else "") + f"{rest / 1000:g}s"


def _place(key: Key, what: What) -> str:
    """Where gateways that share a storage count this; a name that is given to a new secret begins anew."""
    return f"llava-gateway/{what}/{key.name}/{key.digest[:16]}"


def _number(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _redis_pool(url: str) -> Any:
    """Connections that fail soon: one fresh attempt, no pauses. ValueError without the URL, which may hold a password."""
    if not url.startswith(("redis://", "rediss://")):
        raise ValueError("limits are counted in `memory` or at a redis:// or rediss:// URL")
    try:
        from redis.asyncio import BlockingConnectionPool
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
    except ImportError:
        raise ValueError("for limits counted in Redis install the extra: llava-gateway[redis]") from None
    try:
        return BlockingConnectionPool.from_url(url, max_connections=CONNECTIONS, timeout=TIMEOUT, retry=Retry(NoBackoff(), 1))
    except ValueError:
        raise ValueError("the URL of the Redis that counts limits is not valid") from None
