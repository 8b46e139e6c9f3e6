"""Clients that share slots and threads."""

import asyncio
import threading
from collections import Counter
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_gateway.http.middleware.observability import Recorder
from llava_gateway.images.fair_queue import FairSlots, FairThreads
from llava_gateway.observability.context import RequestContext


def test_a_client_with_many_jobs_does_not_stand_in_front_of_one_with_few() -> None:
    async def main() -> None:
        slots, order = FairSlots(1, per_client=1), list[str]()

        async def job(client: str) -> None:
            async with slots.slot(client):
                order.append(client)
                await asyncio.sleep(0)

        await asyncio.gather(*(job(client) for client in ("a",) * 50 + ("b", "b", "c")))
        assert order[:6] == ["a", "a", "b", "c", "a", "b"]
        assert order.count("a") == 50
        assert slots.waiting == 0

    asyncio.run(main())


def test_one_client_cannot_hold_all_slots() -> None:
    async def main() -> None:
        slots = FairSlots(4, per_client=2)
        holders = [asyncio.create_task(slots.acquire("a")) for _ in range(10)]
        await asyncio.sleep(0)
        assert sum(task.done() for task in holders) == 2
        await asyncio.wait_for(slots.acquire("b"), 1)
        await asyncio.wait_for(slots.acquire("b"), 1)
        slots.release("a")
        await asyncio.sleep(0)
        assert sum(task.done() for task in holders) == 3
        for task in holders:
            task.cancel()

    asyncio.run(main())


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["ask", "leave", "cancel"])), max_size=60),
    st.integers(1, 4),
    st.integers(1, 4),
)
def test_no_slot_is_lost_or_given_twice(steps: list[tuple[str, str]], count: int, per_client: int) -> None:
    async def main() -> None:
        slots = FairSlots(count, per_client)
        asked: dict[str, list[asyncio.Task[None]]] = {client: [] for client in "abc"}
        held: Counter[str] = Counter()
        for client, step in steps:
            if step == "ask":
                asked[client].append(asyncio.create_task(slots.acquire(client)))
            elif step == "cancel" and asked[client]:
                asked[client][-1].cancel()  # without a pause: it may have been granted in this very moment
            elif step == "leave" and held[client]:
                held[client] -= 1
                slots.release(client)
                continue
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            for name, tasks in asked.items():
                held[name] += sum(task.done() and not task.cancelled() for task in tasks)
                tasks[:] = [task for task in tasks if not task.done()]
            assert held.total() <= count
            assert max(held.values(), default=0) <= per_client
            assert held.total() == count or all(held[name] == per_client for name, tasks in asked.items() if tasks)
            assert slots.waiting == sum(map(len, asked.values()))
        for client, tasks in asked.items():
            for task in tasks:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
                    slots.release(client)  # which came with the end of another task
        for client in held.elements():
            slots.release(client)
        for number in range(count):
            await asyncio.wait_for(slots.acquire(str(number)), 1)

    asyncio.run(main())


def test_a_thread_whose_client_left_still_counts() -> None:
    """Else the next jobs would wait in the pool's own queue, which knows no clients."""

    async def main() -> None:
        threads, go_on, started = FairThreads(1, "test"), threading.Event(), threading.Event()

        def work() -> None:
            started.set()
            assert go_on.wait(30)

        try:
            leaving = asyncio.create_task(threads.run("a", work))
            assert await asyncio.to_thread(started.wait, 30)
            leaving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaving
            order: list[str] = []
            others = [asyncio.create_task(threads.run(client, order.append, client)) for client in ("b", "b", "c")]
            await asyncio.sleep(0.05)
            assert not order
            go_on.set()
            await asyncio.wait_for(asyncio.gather(*others), 30)
            assert order == ["b", "c", "b"]
        finally:
            go_on.set()
            threads.close()

    asyncio.run(main())


class _Key:
    name = "alice"


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:aaaa::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:bbbb::2", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_a_client_is_its_key_or_else_its_network(address: str, client: str) -> None:
    scope = {"type": "http", "method": "GET", "headers": [], "client": (address, 5) if address else None}
    with Recorder(None, None).record(scope) as record:
        assert record.context.client == client
        record.context.key_name = "alice"
        assert record.context.client == "alice"
    assert RequestContext().client == ""
