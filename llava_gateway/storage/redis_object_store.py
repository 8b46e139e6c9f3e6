"""Values of API keys in a Redis that several gateways share.

A value is a Redis key of its own, which Redis expires. Each owner has an index of ids, sizes and expiry times. One script in Redis changes
value and index together, so simultaneous changes of several gateways cannot exceed the room of an owner. All times are those of Redis.

The room for the values of all owners is that of the Redis server (`maxmemory`). A value that Redis has evicted is gone like one that has
expired; its size counts until its expiry.
"""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from urllib.parse import quote

from llava_gateway.errors import Unavailable
from llava_gateway.storage.object_store import no_room, stored_size, too_large
from llava_gateway.storage.redis_connection import RedisConnection

TIMEOUT = 10.0
"""Seconds that one command may take, with the connection to Redis and the transfer of the values."""

CHANGE = """
-- KEYS: prefix of the owner. ARGV: the action, then its arguments.
-- PREFIX created: ids by the order of their values; PREFIX expiry: ids by expiry time; PREFIX sizes: sizes by id; PREFIX total: their sum.
local prefix, time = KEYS[1], redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local created, expiry, sizes, total = prefix .. 'created', prefix .. 'expiry', prefix .. 'sizes', prefix .. 'total'

local function remove(id)
  local size = redis.call('HGET', sizes, id)
  if not size then return 0 end
  redis.call('DECRBY', total, size)
  redis.call('HDEL', sizes, id)
  redis.call('ZREM', created, id)
  redis.call('ZREM', expiry, id)
  return redis.call('DEL', prefix .. 'value/' .. id)
end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', expiry, '-inf', now)) do remove(id) end

if ARGV[1] == 'delete' then return remove(ARGV[2]) end
if ARGV[1] == 'list' then return redis.call('ZREVRANGE', created, 0, -1) end

local id, value, size, room = ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local ttl, index_ttl, evict = tonumber(ARGV[6]), tonumber(ARGV[7]), ARGV[8] == '1'
remove(id)
while tonumber(redis.call('GET', total) or 0) + size > room do
  local oldest = redis.call('ZRANGE', created, 0, 0)[1]
  if not evict or not oldest then return 0 end
  remove(oldest)
end
redis.call('SET', prefix .. 'value/' .. id, value, 'PX', ttl)
redis.call('HSET', sizes, id, size)
redis.call('INCRBY', total, size)
local newest = redis.call('ZREVRANGE', created, 0, 0, 'WITHSCORES')[2]
redis.call('ZADD', created, (newest or 0) + 1, id)
redis.call('ZADD', expiry, now + ttl, id)
for _, index in ipairs({created, expiry, sizes, total}) do redis.call('PEXPIRE', index, index_ttl) end
return 1
"""


class RedisObjectStore:
    """Values in Redis; implements `object_store.ObjectStore`."""

    def __init__(self, url: str, namespace: str, *, max_bytes_per_owner: int, ttl: float, evict: bool) -> None:
        """Create the store; the first call connects. Parameters and errors are those of `create_object_store`."""
        self._connection = RedisConnection(
            url,
            "state",
            connect_timeout=TIMEOUT,
            outage=f"Requests with {namespace} are refused, because Redis cannot keep them",
            recovery=f"Redis keeps {namespace} again",
        )
        self._namespace, self._max_bytes_per_owner, self._ttl, self._evict = namespace, max_bytes_per_owner, ttl, evict
        self._script = self._connection.redis.register_script(CHANGE)

    async def put(self, owner: str, value_id: str, value: bytes, *, ttl: float | None = None) -> None:
        size, ttl = stored_size(value), self._ttl if ttl is None else min(ttl, self._ttl)
        if size > self._max_bytes_per_owner:
            raise too_large(self._namespace, self._max_bytes_per_owner)
        arguments = ("put", value_id, value, size, self._max_bytes_per_owner, round(ttl * 1000), round(self._ttl * 1000), int(self._evict))
        async with self._reachable():
            has_room = await self._script([self._prefix(owner)], arguments)
        if not has_room:
            raise no_room(self._namespace, self._max_bytes_per_owner)

    async def get(self, owner: str, value_id: str) -> bytes | None:
        (value,) = await self.get_many(owner, (value_id,))
        return value

    async def get_many(self, owner: str, ids: Sequence[str]) -> Sequence[bytes | None]:
        if not ids:
            return []
        prefix = self._prefix(owner).encode()
        async with self._reachable():
            values: Sequence[bytes | None] = await self._connection.redis.mget(
                [prefix + b"value/" + _encoded(value_id) for value_id in ids]
            )
        return values

    async def delete(self, owner: str, value_id: str) -> bool:
        async with self._reachable():
            return bool(await self._script([self._prefix(owner)], ("delete", _encoded(value_id))))

    async def list(self, owner: str) -> Sequence[str]:
        async with self._reachable():
            ids: Sequence[bytes] = await self._script([self._prefix(owner)], ("list",))
        return [value_id.decode() for value_id in ids]

    async def close(self) -> None:
        await self._connection.close()

    def _prefix(self, owner: str) -> str:
        """Return the start of all Redis keys of an owner. The name is quoted, so no name and id give the key of another owner."""
        return f"llava-gateway/{self._namespace}/{quote(owner, safe='')}/"

    def _reachable(self) -> AbstractAsyncContextManager[None]:
        error = Unavailable(f"The server cannot read or keep {self._namespace} now.", code="storage_unavailable", retry_after=5)
        return self._connection.reachable(TIMEOUT, error)


def _encoded(value_id: str) -> bytes:
    """Return an id from a client, which may have lone surrogates, as bytes."""
    return value_id.encode(errors="surrogatepass")
