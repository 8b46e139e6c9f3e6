"""Values of API keys by id, with a time to live, bounded for each key and in all."""

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from llava_gateway.errors import TooManyRequests


class ObjectStore(Protocol):
    """Values of API keys by id, with a time to live, bounded per owner and in all."""

    async def put(self, owner: str, name: str, value: bytes) -> None:
        """Keep a value. Raises GatewayError if the bounds leave no room after expired values are gone."""

    async def get(self, owner: str, name: str) -> bytes | None:
        """Return a value. None: it is unknown, expired, or another owner's."""

    async def delete(self, owner: str, name: str) -> bool:
        """Delete a value, and return whether there was one."""

    async def list(self, owner: str) -> list[str]:
        """Return the ids of an owner's values, the newest first."""

    async def close(self) -> None:
        """Close the connections to the storage."""


class MemoryObjectStore:
    """Values in this process; implements `ObjectStore`."""

    def __init__(
        self, *, max_bytes: int, max_bytes_per_owner: int, ttl: float, evict: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`ttl`: in seconds. `evict`: whether an owner's oldest values make room for a new one. False: `put` refuses the new one."""
        self._max_bytes, self._max_bytes_per_owner, self._ttl = max_bytes, max_bytes_per_owner, ttl
        self._evict, self._clock = evict, clock
        self._values: OrderedDict[tuple[str, str], tuple[float, bytes]] = OrderedDict()
        """The time of expiry and the value, the oldest first."""
        self._bytes: dict[str, int] = {}

    async def put(self, owner: str, name: str, value: bytes) -> None:
        self._expire()
        self._drop((owner, name))
        while self._evict and self._lacks_room(owner, len(value)):
            oldest = next((key for key in self._values if key[0] == owner), None)
            if oldest is None:
                break
            self._drop(oldest)
        if self._lacks_room(owner, len(value)):
            raise TooManyRequests("There is no room to store this.", code="storage_full")
        self._values[owner, name] = self._clock() + self._ttl, value
        self._bytes[owner] = self._bytes.get(owner, 0) + len(value)

    async def get(self, owner: str, name: str) -> bytes | None:
        self._expire()
        _, value = self._values.get((owner, name), (0.0, None))
        return value

    async def delete(self, owner: str, name: str) -> bool:
        self._expire()
        return self._drop((owner, name))

    async def list(self, owner: str) -> list[str]:
        self._expire()
        return [name for value_owner, name in reversed(self._values) if value_owner == owner]

    async def close(self) -> None:
        pass

    def _lacks_room(self, owner: str, size: int) -> bool:
        total = sum(self._bytes.values())
        return total + size > self._max_bytes or self._bytes.get(owner, 0) + size > self._max_bytes_per_owner

    def _expire(self) -> None:
        while self._values and next(iter(self._values.values()))[0] <= self._clock():
            self._drop(next(iter(self._values)))

    def _drop(self, key: tuple[str, str]) -> bool:
        if key not in self._values:
            return False
        _, value = self._values.pop(key)
        self._bytes[key[0]] -= len(value)
        if not self._bytes[key[0]]:
            del self._bytes[key[0]]
        return True


def create_object_store(storage: str, namespace: str, *, max_bytes: int, max_bytes_per_owner: int, ttl: float, evict: bool) -> ObjectStore:
    """Return a store. `storage`: `memory`. `namespace`: separates the values of several stores."""
    return MemoryObjectStore(max_bytes=max_bytes, max_bytes_per_owner=max_bytes_per_owner, ttl=ttl, evict=evict)
