"""Values of API keys by id, with a time to live: the interface, and the store in this process.

    store = create_object_store("memory", "files", max_bytes=1 << 30, max_bytes_per_owner=1 << 26, ttl=3600, evict=False)
    await store.put("alice", "file-1", b"...")
    await store.get("alice", "file-1")
    await store.get("bob", "file-1")  # None: a value belongs to one API key

A store has room for the values of one key, and for the values of all keys. Each value counts with its bytes and a fixed overhead, so that
many small values are bounded as well.
"""

import heapq
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from llava_gateway.errors import GatewayError, InvalidRequest, TooManyRequests

OVERHEAD = 1024
"""The memory that a value takes beside its bytes, in bytes: its id, its owner's name and its entries in the indexes."""
MIN_COMPACTED = 64
"""The number of entries that the index of expiry times may always have."""


class ObjectStore(Protocol):
    """Values of API keys by id, with a time to live, bounded per owner and in all.

    `owner`: the name of an API key; empty if the server asks for no key. An id may be any text, such as a text from a client.
    """

    async def put(self, owner: str, value_id: str, value: bytes, *, ttl: float | None = None) -> None:
        """Keep a value. An earlier value of the same id is removed first.

        `ttl`: the value's time to live in seconds, if it is shorter than the store's. Raises TooManyRequests if the values leave no room,
        InvalidRequest if the value is larger than all room of its owner, and Unavailable.
        """

    async def get(self, owner: str, value_id: str) -> bytes | None:
        """Return a value. None: the owner has no value of this id, or the value has expired. Raises Unavailable."""

    async def get_many(self, owner: str, ids: Sequence[str]) -> Sequence[bytes | None]:
        """Return the values of `ids` in order, as `get` does. Raises Unavailable."""

    async def delete(self, owner: str, value_id: str) -> bool:
        """Delete a value. Return whether the owner had a value of this id. Raises Unavailable."""

    async def list(self, owner: str) -> Sequence[str]:
        """Return the ids of an owner's values, the newest first. Raises Unavailable."""

    async def close(self) -> None:
        """Close the connections of the store."""


def stored_size(value: bytes) -> int:
    """Return the bytes that a value counts."""
    return len(value) + OVERHEAD


def too_large(namespace: str, max_bytes_per_owner: int) -> GatewayError:
    """Return the error for a value that is larger than all room of its owner."""
    return InvalidRequest(f"This is larger than the {max_bytes_per_owner >> 20} MiB that the server keeps for your {namespace}.")


def no_room(namespace: str, max_bytes_per_owner: int | None = None) -> GatewayError:
    """Return the error for a value that has no room. `max_bytes_per_owner`: None if the values of all owners leave no room."""
    if max_bytes_per_owner is None:
        message = f"The server has no room for more {namespace}. Try again later."
    else:
        message = f"You have {max_bytes_per_owner >> 20} MiB for {namespace}, and they are full. Delete some, or wait until some expire."
    return TooManyRequests(message, code="storage_full", retry_after=60)


@dataclass(frozen=True, slots=True)
class _Stored:
    value: bytes
    expires: float
    """By the store's clock."""
    number: int
    """The number of the `put`, which tells a value from an earlier value of the same id."""


@dataclass(slots=True)
class _Owner:
    values: dict[str, _Stored] = field(default_factory=dict)
    """By id, the oldest first."""
    bytes: int = 0


class MemoryObjectStore:
    """Values in the memory of this process. Used from one event loop.

    Each call first removes expired values, so no timer is needed. A value that has expired is never returned.
    """

    def __init__(
        self,
        namespace: str,
        *,
        max_bytes: int,
        max_bytes_per_owner: int,
        ttl: float,
        evict: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create an empty store.

        `namespace`: the plural noun for the values in errors, such as `files`. `max_bytes`, `max_bytes_per_owner`: the room for all values
        and for the values of one owner. `ttl`: the time to live of a value, in seconds. `evict`: whether old values make
        room for a new one; otherwise a value without room is refused. `clock`: returns seconds.
        """
        self.bytes = 0
        """The bytes of all values, as `stored_size` counts them."""
        self._namespace, self._ttl, self._evict, self._clock = namespace, ttl, evict, clock
        self._max_bytes, self._max_bytes_per_owner = max_bytes, min(max_bytes, max_bytes_per_owner)
        self._owners: dict[str, _Owner] = {}
        self._numbers = itertools.count()
        self._expiries: list[tuple[float, int, str, str]] = []
        """A heap of expiry, number, owner and id. Entries of values that are gone are dropped when they come up, or when they are many."""
        self._count = 0

    async def put(self, owner: str, value_id: str, value: bytes, *, ttl: float | None = None) -> None:
        size = stored_size(value)
        if size > self._max_bytes_per_owner:
            raise too_large(self._namespace, self._max_bytes_per_owner)
        self._remove_expired()
        self._remove(owner, value_id)
        self._make_room(owner, size)
        stored = _Stored(value, self._clock() + (self._ttl if ttl is None else min(ttl, self._ttl)), next(self._numbers))
        owned = self._owners.setdefault(owner, _Owner())
        owned.values[value_id] = stored
        owned.bytes += size
        self.bytes += size
        self._count += 1
        heapq.heappush(self._expiries, (stored.expires, stored.number, owner, value_id))

    async def get(self, owner: str, value_id: str) -> bytes | None:
        (value,) = await self.get_many(owner, (value_id,))
        return value

    async def get_many(self, owner: str, ids: Sequence[str]) -> Sequence[bytes | None]:
        self._remove_expired()
        found = (self._find(owner, value_id) for value_id in ids)
        return [stored.value if stored else None for stored in found]

    async def delete(self, owner: str, value_id: str) -> bool:
        self._remove_expired()
        return self._remove(owner, value_id)

    async def list(self, owner: str) -> Sequence[str]:
        self._remove_expired()
        return list(reversed(self._owners[owner].values)) if owner in self._owners else []

    async def close(self) -> None:
        self._owners.clear()

    def _make_room(self, owner: str, size: int) -> None:
        """Evict the oldest values of the owner, and then those of the owner with the most bytes, until a value of `size` bytes has room.

        Raises TooManyRequests if the store does not evict.
        """
        owned = self._owners.get(owner, _Owner())
        while owned.bytes + size > self._max_bytes_per_owner:
            if not self._evict:
                raise no_room(self._namespace, self._max_bytes_per_owner)
            self._remove(owner, next(iter(owned.values)))
        while self.bytes + size > self._max_bytes:
            if not self._evict:
                raise no_room(self._namespace)
            largest = max(self._owners, key=lambda each: self._owners[each].bytes)
            self._remove(largest, next(iter(self._owners[largest].values)))

    def _find(self, owner: str, value_id: str) -> _Stored | None:
        owned = self._owners.get(owner)
        return owned.values.get(value_id) if owned else None

    def _remove(self, owner: str, value_id: str) -> bool:
        """Remove a value if there is one."""
        if (stored := self._find(owner, value_id)) is None:
            return False
        owned = self._owners[owner]
        del owned.values[value_id]
        owned.bytes -= stored_size(stored.value)
        self.bytes -= stored_size(stored.value)
        self._count -= 1
        if not owned.values:
            del self._owners[owner]
        return True

    def _remove_expired(self) -> None:
        now = self._clock()
        while self._expiries and self._expiries[0][0] <= now:
            _, number, owner, value_id = heapq.heappop(self._expiries)
            if (stored := self._find(owner, value_id)) and stored.number == number:
                self._remove(owner, value_id)
        if len(self._expiries) > 2 * self._count + MIN_COMPACTED:
            live = ((stored, owner, value_id) for owner, owned in self._owners.items() for value_id, stored in owned.values.items())
            self._expiries = [(stored.expires, stored.number, owner, value_id) for stored, owner, value_id in live]
            heapq.heapify(self._expiries)


def create_object_store(storage: str, namespace: str, *, max_bytes: int, max_bytes_per_owner: int, ttl: float, evict: bool) -> ObjectStore:
    """Create a store. Parameters are those of `MemoryObjectStore`.

    `storage`: `memory` or empty, or a redis:// or rediss:// URL. In Redis the room for all values is that of the Redis server. Raises
    ValueError for another `storage`, or without the Redis client.
    """
    if storage in ("", "memory"):
        return MemoryObjectStore(namespace, max_bytes=max_bytes, max_bytes_per_owner=max_bytes_per_owner, ttl=ttl, evict=evict)
    from llava_gateway.storage.redis_object_store import RedisObjectStore

    return RedisObjectStore(storage, namespace, max_bytes_per_owner=max_bytes_per_owner, ttl=ttl, evict=evict)
