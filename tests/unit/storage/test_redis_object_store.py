"""Values of API keys in a real Redis, which several gateways share."""

import asyncio
import itertools
from typing import Any

import hypothesis
import pytest
import redis as client
from helpers.limits import Redis
from hypothesis import given
from hypothesis import strategies as st

from llava_gateway.errors import TooManyRequests, Unavailable
from llava_gateway.storage import redis_object_store
from llava_gateway.storage.object_store import OVERHEAD, MemoryObjectStore, ObjectStore, create_object_store
from llava_gateway.storage.redis_object_store import RedisObjectStore

pytestmark = pytest.mark.slow

KIB = 1024
ROOM = 10 * KIB
STEP = st.tuples(
    st.sampled_from(["put", "put", "get", "delete", "list"]), st.sampled_from(["a", "a/b", ""]), st.sampled_from(["1", "b/1", "/"])
)
numbers = itertools.count()


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may need more than the seconds that an operator's Redis has."""
    monkeypatch.setattr(redis_object_store, "TIMEOUT", 60.0)


def store(redis: Redis, namespace: str = "files", **parameters: Any) -> RedisObjectStore:
    return RedisObjectStore(redis.url, namespace, **({"max_bytes_per_owner": ROOM, "ttl": 600.0, "evict": False} | parameters))


async def answer(values: ObjectStore, action: str, owner: str, name: str, value: bytes) -> Any:
    """Return what one call of a store returns or raises."""
    if action == "get":
        return await values.get(owner, name)
    if action == "delete":
        return await values.delete(owner, name)
    if action == "list":
        return await values.list(owner)
    try:
        await values.put(owner, name, value)
    except TooManyRequests as error:
        return error.message


@given(st.lists(st.tuples(STEP, st.integers(0, 6)), max_size=30), st.booleans())
@hypothesis.settings(max_examples=100, deadline=None)
def test_redis_keeps_the_same_values_as_memory(shared_redis: Redis, steps: list[tuple[tuple[str, str, str], int]], evict: bool) -> None:
    async def scenario() -> None:
        namespace = f"files{next(numbers)}"
        memory = MemoryObjectStore(namespace, max_bytes=1 << 30, max_bytes_per_owner=ROOM, ttl=600, evict=evict)
        values = store(shared_redis, namespace, evict=evict)
        for (action, owner, name), amount in steps:
            value = bytes(amount * KIB)
            assert await answer(values, action, owner, name, value) == await answer(memory, action, owner, name, value)
        for owner in ("a", "a/b", ""):
            ids = await values.list(owner)
            assert ids == await memory.list(owner)
            assert await values.get_many(owner, ids) == await memory.get_many(owner, ids)
        await values.close()

    asyncio.run(scenario())


def test_gateways_with_one_redis_share_values_and_their_bounds(redis: Redis) -> None:
    async def scenario() -> None:
        one, other = store(redis), store(redis)
        outcomes = await asyncio.gather(
            *((one, other)[number % 2].put("alice", f"v{number}", bytes(KIB)) for number in range(40)), return_exceptions=True
        )
        assert outcomes.count(None) == ROOM // (KIB + OVERHEAD)
        assert all(isinstance(outcome, TooManyRequests) for outcome in outcomes if outcome is not None)
        kept = await one.list("alice")
        assert kept == await other.list("alice")
        assert await other.get_many("alice", [*kept, "none"]) == [*(bytes(KIB) for _ in kept), None]
        assert await other.get("bob", kept[0]) is None
        await one.close()
        await other.close()

    asyncio.run(scenario())


def test_expired_value_is_gone_and_gives_back_its_room(redis: Redis) -> None:
    async def scenario() -> None:
        values = store(redis)
        for number in range(4):
            await values.put("alice", f"brief{number}", bytes(KIB), ttl=0.05)
        await values.put("alice", "long", bytes(KIB), ttl=1e9)
        while await values.get("alice", "brief3") is not None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        for number in range(4):
            await values.put("alice", f"more{number}", bytes(KIB))
        assert await values.list("alice") == ["more3", "more2", "more1", "more0", "long"]
        assert not await values.delete("alice", "brief0")
        await values.close()

    asyncio.run(scenario())
    with client.Redis(port=redis.port, db=1) as connection:  # no key of Redis stays for ever
        assert all(0 < connection.pttl(key) <= 600_000 for key in connection.scan_iter())


def test_value_that_redis_evicted_is_gone(redis: Redis) -> None:
    async def scenario() -> None:
        values = store(redis)
        await values.put("alice", "one", b"1")
        with client.Redis(port=redis.port, db=1) as connection:
            connection.delete("llava-gateway/files/alice/value/one")
        assert await values.get("alice", "one") is None
        assert not await values.delete("alice", "one")
        assert await values.list("alice") == []
        await values.close()

    asyncio.run(scenario())


def test_odd_id_of_a_client_is_unknown(redis: Redis) -> None:
    async def scenario() -> None:
        values = store(redis)
        for odd in ("\ud800", "\0", "*", "x" * 10_000, ""):
            assert await values.get("alice", odd) is None
            assert not await values.delete("alice", odd)
        await values.close()

    asyncio.run(scenario())


def test_lost_redis_is_unavailable(redis: Redis, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        values = create_object_store(redis.url, "files", max_bytes=1, max_bytes_per_owner=ROOM, ttl=60, evict=False)
        await values.put("alice", "one", b"1")
        redis.__exit__()
        for call in (values.put("alice", "two", b"2"), values.get("alice", "one"), values.list("alice"), values.delete("alice", "one")):
            with pytest.raises(Unavailable) as refusal:
                await call
            assert (refusal.value.code, refusal.value.retry_after) == ("storage_unavailable", 5)
            assert "127.0.0.1" not in refusal.value.message
        redis.__enter__()
        assert await values.get("alice", "one") is None
        assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
        await values.close()

    asyncio.run(scenario())
