"""Values in a Redis that several gateways share.

An owner has an index in Redis: a sorted set of names by their time of storage, and a hash of their sizes. One script changes the values and
the index together, by the clock of Redis.
"""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from blake3 import blake3

from llava_gateway.errors import Unavailable
from llava_gateway.storage.object_store import Bounds, no_room

log = logging.getLogger(__name__)

TIMEOUT = 5.0
"""Seconds that one command may take, with the connection to Redis."""
CONNECTIONS = 32
"""The upper bound of connections to Redis."""

PUT = """
-- KEYS: the owner's set of names by time, the owner's hash of sizes, the value.
-- ARGV: the prefix of values, the name, the value, the time to live in seconds, the bound of the owner in bytes, '1' to evict.
-- Returns 1 if the value is stored, or 0 if it has no room.
local times, sizes, prefix, name, value = KEYS[1], KEYS[2], ARGV[1], ARGV[2], ARGV[3]
local ttl, bound, evict = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6] == '1'
local now = redis.call('TIME')
now = now[1] + now[2] / 1000000

local function delete(old)
  redis.call('DEL', prefix .. old)
  redis.call('ZREM', times, old)
  redis.call('HDEL', sizes, old)
end

for _, old in ipairs(redis.call('ZRANGEBYSCORE', times, '-inf', now - ttl)) do delete(old) end
delete(name)
local total = #value
for _, size in ipairs(redis.call('HVALS', sizes)) do total = total + size end
if #value > bound then return 0 end
while total > bound do
  if not evict then return 0 end
  local oldest = redis.call('ZRANGE', times, 0, 0)[1]
  total = total - redis.call('HGET', sizes, oldest)
  delete(oldest)
end
redis.call('SET', KEYS[3], value, 'EX', ttl)
redis.call('ZADD', times, now, name)
redis.call('HSET', sizes, name, #value)
redis.call('EXPIRE', times, ttl)
redis.call('EXPIRE', sizes, ttl)
return 1
"""


class RedisObjects:
    """Values in Redis; implements `object_store.ObjectStore`."""

    def __init__(self, url: str, namespace: str, bounds: Bounds) -> None:
        """Create the store; the first command connects.

        Raises ValueError if `url` is not valid, or if the Redis client is not installed. The message never shows the
        URL, which may contain a password.
        """
        if not url.startswith(("redis://", "rediss://")):
            raise ValueError("state must be `memory`, or a redis:// or rediss:// URL")
        try:
            from redis.asyncio import BlockingConnectionPool, Redis
            from redis.exceptions import RedisError
        except ImportError:
            raise ValueError("state in Redis needs llava-gateway[redis]") from None
        try:
            pool = BlockingConnectionPool.from_url(
                url, max_connections=CONNECTIONS, timeout=TIMEOUT, socket_timeout=TIMEOUT, socket_connect_timeout=TIMEOUT
            )
        except ValueError:
            raise ValueError("the Redis URL in state is not valid") from None
        self._errors = (RedisError, OSError)
        self._redis = Redis.from_pool(pool)
        self._put = self._redis.register_script(PUT)
        self._namespace, self._bounds = namespace, bounds

    async def put(self, owner: str, name: str, value: bytes) -> None:
        times, sizes, prefix = self._keys(owner)
        bounds = self._bounds
        arguments = (prefix, name, value, bounds.ttl, bounds.max_bytes_per_owner, int(bounds.evict))
        async with self._reachable():
            stored = await self._put((times, sizes, prefix + name), arguments)
        if not stored:
            raise no_room(bounds.max_bytes_per_owner)

    async def get(self, owner: str, name: str) -> bytes | None:
        _, _, prefix = self._keys(owner)
        async with self._reachable():
            value: bytes | None = await self._redis.get(prefix + name)
        return value

    async def delete(self, owner: str, name: str) -> bool:
        times, sizes, prefix = self._keys(owner)
        async with self._reachable(), self._redis.pipeline(transaction=True) as pipeline:
            pipeline.delete(prefix + name)
            pipeline.zrem(times, name)
            pipeline.hdel(sizes, name)
            deleted, _, _ = await pipeline.execute()
        return bool(deleted)

    async def list(self, owner: str) -> list[str]:
        times, _, _ = self._keys(owner)
        async with self._reachable():
            names = await self._redis.zrevrange(times, 0, -1)
        return [name.decode() for name in names]

    async def close(self) -> None:
        await self._redis.aclose(close_connection_pool=True)

    def _keys(self, owner: str) -> tuple[str, str, str]:
        """Return the keys of the owner's times and sizes, and the prefix of its values. All are on one node of a Redis cluster."""
        base = f"llava-gateway/{self._namespace}/{{{blake3(owner.encode()).hexdigest(16)}}}"
        return f"{base}/times", f"{base}/sizes", f"{base}/value/"

    @asynccontextmanager
    async def _reachable(self) -> AsyncIterator[None]:
        """Raise Unavailable for an error of Redis in the block. The log has the details."""
        try:
            yield
        except self._errors as error:
            log.error("The Redis in the setting state fails: %s", type(error).__name__)
            raise Unavailable(
                "The server's storage does not answer. Try again later.", code="storage_unavailable", retry_after=5
            ) from error
