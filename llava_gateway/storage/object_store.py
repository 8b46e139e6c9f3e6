"""Values of API keys by name, with a time to live, bounded for each key and in all."""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from llava_gateway.errors import InsufficientStorage

OVERHEAD = 512
"""The memory of a value beside its bytes: its name and its places in the tables."""


@dataclass(frozen=True)
class Bounds:
    """The bounds of a store."""

    max_bytes: int
    """Of all values together. A Redis has its own bound instead, `maxmemory`."""
    max_bytes_per_owner: int
    ttl: int
    """The time to live of a value, in seconds."""
    evict: bool
    """Whether the oldest values make room for a new one. False: a new value that has no room is refused."""


class ObjectStore(Protocol):
    """Values by owner and name. An owner is the name of an API key, or empty if the server asks for none."""

    async def put(self, owner: str, name: str, value: bytes) -> None:
        """Store a value. Raises InsufficientStorage if it has no room, or Unavailable if the storage fails."""

    async def get(self, owner: str, name: str) -> bytes | None:
        """Return a value, or None if the owner has no value of this name, or no longer. Raises Unavailable."""

    async def delete(self, owner: str, name: str) -> bool:
        """Delete a value, and return whether there was one. Raises Unavailable."""

    async def list(self, owner: str) -> list[str]:
        """Return the names of an owner's values, the newest first. Raises Unavailable."""

    async def close(self) -> None:
        """Close the connections to the storage."""


def create_object_store(storage: str, namespace: str, bounds: Bounds) -> ObjectStore:
    """Return a store.

    `storage`: `memory`, or a redis:// or rediss:// URL. `namespace`: separates the stores in one Redis. Raises ValueError for other URLs,
    or without the Redis client.
    """
    if storage in ("", "memory"):
        return MemoryObjects(bounds)
    from llava_gateway.storage.redis_objects import RedisObjects

    return RedisObjects(storage, namespace, bounds)


def no_room(max_bytes: int) -> InsufficientStorage:
    """Return the error for a value that has no room. `max_bytes`: the bound of the owner."""
    return InsufficientStorage(
        f"There is no room for this in the server's storage, which has {max_bytes >> 20} MiB for each API key. Delete stored values.",
        code="storage_full",
    )


class MemoryObjects:
    """Values in this process; implements `ObjectStore`. Used from one event loop."""

    def __init__(self, bounds: Bounds, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: returns the time in seconds."""
        self._bounds, self._clock = bounds, clock
        self._owners: dict[str, OrderedDict[str, bytes]] = {}
        self._sizes: dict[str, int] = {}
        self._expiry: OrderedDict[tuple[str, str], float] = OrderedDict()
        """When each value expires. Every value lives as long, so the oldest value is the first to expire."""
        self.bytes = 0
        """The memory of all values."""

    async def put(self, owner: str, name: str, value: bytes) -> None:
        self._expire()
        self._delete(owner, name)
        size, bounds = len(value) + OVERHEAD, self._bounds
        if size > min(bounds.max_bytes, bounds.max_bytes_per_owner):
            raise no_room(bounds.max_bytes_per_owner)
        while self._sizes.get(owner, 0) + size > bounds.max_bytes_per_owner:
            self._make_room(owner)
        while self.bytes + size > bounds.max_bytes:
            self._make_room(max(self._sizes, key=self._sizes.__getitem__))  # the owner with the most bytes
        self._owners.setdefault(owner, OrderedDict())[name] = value
        self._expiry[owner, name] = self._clock() + bounds.ttl
        self._count(owner, size)

    async def get(self, owner: str, name: str) -> bytes | None:
        self._expire()
        return self._owners.get(owner, OrderedDict()).get(name)

    async def delete(self, owner: str, name: str) -> bool:
        self._expire()
        return self._delete(owner, name)

    async def list(self, owner: str) -> list[str]:
        self._expire()
        return list(reversed(self._owners.get(owner, OrderedDict())))

    async def close(self) -> None:
        """Do nothing: there is no connection."""

    def _make_room(self, owner: str) -> None:
        """Delete the owner's oldest value. Raises InsufficientStorage unless the store evicts."""
        if not self._bounds.evict:
            raise no_room(self._bounds.max_bytes_per_owner)
        self._delete(owner, next(iter(self._owners[owner])))

    def _expire(self) -> None:
        now = self._clock()
        while self._expiry:
            (owner, name), expires = next(iter(self._expiry.items()))
            if expires > now:
                return
            self._delete(owner, name)

    def _delete(self, owner: str, name: str) -> bool:
        values = self._owners.get(owner, OrderedDict())
        if name not in values:
            return False
        value = values.pop(name)
        del self._expiry[owner, name]
        self._count(owner, -len(value) - OVERHEAD)
        return True

    def _count(self, owner: str, size: int) -> None:
        self.bytes += size
        self._sizes[owner] = self._sizes.get(owner, 0) + size
        if not self._sizes[owner]:
            del self._sizes[owner], self._owners[owner]
