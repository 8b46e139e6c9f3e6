"""Values of API keys in memory: their bounds, their expiry, and whose they are."""

import asyncio
import contextlib
import tracemalloc
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_gateway.errors import InvalidRequest, TooManyRequests
from llava_gateway.storage.object_store import MIN_COMPACTED, OVERHEAD, MemoryObjectStore, create_object_store

KIB = 1024
STOPPED = SimpleNamespace(now=1000.0)


def store(**parameters: Any) -> MemoryObjectStore:
    """Return a store with room for ten values of a KiB per owner, whose clock is `STOPPED.now`."""
    defaults = {"max_bytes": 100 * (KIB + OVERHEAD), "max_bytes_per_owner": 10 * (KIB + OVERHEAD), "ttl": 60.0, "evict": False}
    return MemoryObjectStore("files", clock=lambda: STOPPED.now, **(defaults | parameters))


def value(number: int) -> bytes:
    return number.to_bytes(KIB, "big")


async def fill(values: MemoryObjectStore, owner: str, count: int) -> None:
    for number in range(count):
        await values.put(owner, f"v{number}", value(number))


def test_value_belongs_to_one_owner() -> None:
    async def scenario() -> None:
        values = store()
        await values.put("alice", "one", b"hers")
        await values.put("bob", "one", b"his")
        assert (await values.get("alice", "one"), await values.get("bob", "one"), await values.get("", "one")) == (b"hers", b"his", None)
        assert not await values.delete("carol", "one")
        assert await values.delete("alice", "one")
        assert not await values.delete("alice", "one")
        assert (await values.list("alice"), await values.list("bob")) == ([], ["one"])

    asyncio.run(scenario())


def test_values_are_listed_newest_first_and_read_together() -> None:
    async def scenario() -> None:
        values = store()
        await fill(values, "alice", 3)
        await values.put("alice", "v0", b"again")
        assert await values.list("alice") == ["v0", "v2", "v1"]
        assert await values.get_many("alice", ["v1", "none", "v0"]) == [value(1), None, b"again"]

    asyncio.run(scenario())


def test_expired_value_is_gone_and_gives_back_its_room() -> None:
    async def scenario() -> None:
        values = store()
        await fill(values, "alice", 9)
        await values.put("alice", "brief", value(9), ttl=5)
        await values.put("bob", "long", b"", ttl=1e9)
        STOPPED.now += 5
        assert await values.get("alice", "brief") is None
        assert len(await values.list("alice")) == 9
        await values.put("alice", "more", value(10))
        STOPPED.now += 55
        assert await values.list("alice") == ["more"]
        assert await values.get("bob", "long") is None  # no value outlives the store's own time to live
        assert values.bytes == KIB + OVERHEAD
        STOPPED.now += 5
        assert await values.get("bob", "long") is None
        assert values.bytes == 0

    asyncio.run(scenario())


def test_old_expiry_does_not_remove_a_replaced_value() -> None:
    async def scenario() -> None:
        values = store()
        await values.put("alice", "one", b"old", ttl=5)
        await values.put("alice", "one", b"new")
        STOPPED.now += 6
        assert await values.get("alice", "one") == b"new"

    asyncio.run(scenario())


def test_value_without_room_is_refused() -> None:
    async def scenario() -> None:
        values = store()
        await fill(values, "alice", 10)
        with pytest.raises(TooManyRequests, match="Delete some") as refusal:
            await values.put("alice", "more", b"")
        assert refusal.value.code == "storage_full"
        for owner in "bcdefghij":
            await fill(values, owner, 10)
        with pytest.raises(TooManyRequests, match="The server has no room"):
            await values.put("k", "one", b"")
        with pytest.raises(InvalidRequest):
            await values.put("k", "large", bytes(10 * (KIB + OVERHEAD)))
        await values.delete("alice", "v3")
        await values.put("k", "one", value(0))

    asyncio.run(scenario())


def test_eviction_takes_the_oldest_values_of_the_owner_and_then_of_the_largest_owner() -> None:
    async def scenario() -> None:
        values = store(evict=True, max_bytes=15 * (KIB + OVERHEAD))
        await fill(values, "alice", 12)
        assert await values.list("alice") == [f"v{number}" for number in range(11, 1, -1)]
        await fill(values, "bob", 7)
        assert await values.list("bob") == [f"v{number}" for number in range(6, -1, -1)]
        assert await values.list("alice") == [f"v{number}" for number in range(11, 3, -1)]
        await values.put("carol", "one", value(0))
        assert await values.list("carol") == ["one"]
        assert len(await values.list("alice")) == 7

    asyncio.run(scenario())


def test_small_values_stay_within_the_memory_that_they_count() -> None:
    async def scenario() -> int:
        values = MemoryObjectStore("files", max_bytes=1 << 30, max_bytes_per_owner=1 << 30, ttl=60, evict=False)
        tracemalloc.start()
        for number in range(10_000):
            await values.put(f"a key with a name {number % 100}", f"file-{number:032x}", number.to_bytes(8, "big"))
        taken, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert taken < values.bytes
        return values.bytes

    assert asyncio.run(scenario()) == 10_000 * (8 + OVERHEAD)


def test_deleted_values_leave_no_entries_behind() -> None:
    async def scenario() -> None:
        values = store()
        for number in range(1000):
            await values.put("alice", f"v{number}", b"")
            await values.delete("alice", f"v{number}")
        assert len(values._expiries) <= MIN_COMPACTED + 1
        assert not values._owners

    asyncio.run(scenario())


STEP = st.tuples(st.sampled_from(["put", "delete", "wait"]), st.sampled_from("ab"), st.sampled_from("123456"), st.integers(0, 8))


@given(st.lists(STEP, max_size=60), st.booleans())
def test_bytes_are_those_of_the_values(steps: list[tuple[str, str, str, int]], evict: bool) -> None:
    async def scenario() -> None:
        values = store(evict=evict, max_bytes=14 * KIB, max_bytes_per_owner=10 * KIB, ttl=20)
        for action, owner, name, amount in steps:
            if action == "put":
                with contextlib.suppress(TooManyRequests):
                    await values.put(owner, name, bytes(amount * KIB), ttl=5.0 + amount)
            elif action == "delete":
                await values.delete(owner, name)
            else:
                STOPPED.now += amount
            sizes = {owner: [len(v or b"") + OVERHEAD for v in await values.get_many(owner, await values.list(owner))] for owner in "ab"}
            assert values.bytes == sum(sum(size) for size in sizes.values()) <= 14 * KIB
            assert all(sum(size) <= 10 * KIB for size in sizes.values())

    asyncio.run(scenario())


@pytest.mark.parametrize("storage", ["disk", "http://127.0.0.1", "redis://:secret@127.0.0.1:port"])
def test_other_storage_is_refused_without_its_password(storage: str) -> None:
    with pytest.raises(ValueError, match=r"^(state|the Redis URL in state)") as refusal:
        create_object_store(storage, "files", max_bytes=1, max_bytes_per_owner=1, ttl=1, evict=False)
    assert "secret" not in str(refusal.value)
