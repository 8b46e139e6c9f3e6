"""Connections to a Redis that several gateways share, with time limits."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from llava_gateway.errors import Unavailable

log = logging.getLogger(__name__)

CONNECTIONS = 32
"""The upper bound of connections to Redis."""


class RedisConnection:
    """A pool of connections to Redis. An outage is logged once, and fails requests with Unavailable."""

    def __init__(self, url: str, setting: str, *, connect_timeout: float, outage: str, recovery: str) -> None:
        """Create the pool; the first command connects.

        `setting`: the name of the setting that `url` comes from, for errors. `connect_timeout`: how long a command may wait for a free
        connection, in seconds. `outage`, `recovery`: what is logged when Redis fails and when it is back. Raises ValueError if `url` is not
        valid, or if the Redis client is not installed. The message never shows the URL, which may contain a password.
        """
        if not url.startswith(("redis://", "rediss://")):
            raise ValueError(f"{setting} must be `memory`, or a redis:// or rediss:// URL")
        try:
            from redis.asyncio import BlockingConnectionPool, Redis
            from redis.asyncio.retry import Retry
            from redis.backoff import NoBackoff
            from redis.exceptions import RedisError
        except ImportError:
            raise ValueError(f"{setting} in Redis needs llava-gateway[redis]") from None
        self._errors = (RedisError, OSError)
        try:  # one retry and no pause, so that a failing Redis is noticed soon
            pool = BlockingConnectionPool.from_url(url, max_connections=CONNECTIONS, timeout=connect_timeout, retry=Retry(NoBackoff(), 1))
        except ValueError:
            raise ValueError(f"the Redis URL in {setting} is not valid") from None
        self.redis = Redis.from_pool(pool)
        self._outage, self._recovery = outage, recovery
        self._failing = False

    @asynccontextmanager
    async def reachable(self, timeout: float, unavailable: Unavailable) -> AsyncIterator[None]:
        """Run the block, which calls Redis. Raises `unavailable` if Redis fails, or takes more than `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                yield
        except self._errors as error:
            if not self._failing:
                self._failing = True
                log.error("%s: %s", self._outage, str(error) or "no response")
            raise unavailable from error
        if self._failing:
            self._failing = False
            log.warning("%s", self._recovery)

    async def close(self) -> None:
        """Close all connections."""
        await self.redis.aclose(close_connection_pool=True)
