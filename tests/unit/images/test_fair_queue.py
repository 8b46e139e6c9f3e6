"""Slots and threads that clients share fairly."""

import asyncio
import threading
from collections import Counter
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llava_gateway.http.middleware.observability import Recorder
from llava_gateway.images.fair_queue import FairSlots, FairThreads
from llava_gateway.observability.context import RequestContext

NO_DEADLINE = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""On a busy machine an example may take longer than Hypothesis allows by default."""


def test_a_client_with_many_jobs_does_not_delay_a_client_with_few() -> None:
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
        await asyncio.wait_for(slots.acquire("b"), 60)
        await asyncio.wait_for(slots.acquire("b"), 60)
        slots.release("a")
        await asyncio.sleep(0)
        assert sum(task.done() for task in holders) == 3
        for task in holders:
            task.cancel()

    asyncio.run(main())


@NO_DEADLINE
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["acquire", "release", "cancel"])), max_size=60),
    st.integers(1, 4),
    st.integers(1, 4),
)
def test_no_slot_is_lost_or_given_twice(steps: list[tuple[str, str]], count: int, per_client: int) -> None:
    async def main() -> None:
        slots = FairSlots(count, per_client)
        waiting: dict[str, list[asyncio.Task[None]]] = {client: [] for client in "abc"}
        held: Counter[str] = Counter()
        for client, step in steps:
            if step == "acquire":
                waiting[client].append(asyncio.create_task(slots.acquire(client)))
            elif step == "cancel" and waiting[client]:
                waiting[client][-1].cancel()  # without a pause: the slot may have been granted in the same cycle of the event loop
            elif step == "release" and held[client]:
                held[client] -= 1
                slots.release(client)
                continue
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            for name, tasks in waiting.items():
                held[name] += sum(task.done() and not task.cancelled() for task in tasks)
                tasks[:] = [task for task in tasks if not task.done()]
            assert held.total() <= count
            assert max(held.values(), default=0) <= per_client
            assert held.total() == count or all(held[name] == per_client for name, tasks in waiting.items() if tasks)
            assert slots.waiting == sum(map(len, waiting.values()))
        for client, tasks in waiting.items():
            for task in tasks:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
                    slots.release(client)  # the slot was granted when another task ended
        for client in held.elements():
            slots.release(client)
        for number in range(count):
            await asyncio.wait_for(slots.acquire(str(number)), 60)

    asyncio.run(main())


def test_a_slot_is_not_free_while_the_thread_of_a_cancelled_job_runs() -> None:
    """Otherwise the next jobs would wait in the queue of the thread pool, which is not fair."""

    async def main() -> None:
        threads, go_on, started = FairThreads(1, "test"), threading.Event(), threading.Event()

        def work() -> None:
            started.set()
            assert go_on.wait(60)

        try:
            cancelled = asyncio.create_task(threads.run("a", work))
            assert await asyncio.to_thread(started.wait, 60)
            cancelled.cancel()
            with pytest.raises(asyncio.CancelledError):
                await cancelled
            order: list[str] = []
            others = [asyncio.create_task(threads.run(client, order.append, client)) for client in ("b", "b", "c")]
            while threads._slots.waiting < len(others):  # noqa: ASYNC110 # there is no event for this
                await asyncio.sleep(0)
            assert not order
            go_on.set()
            await asyncio.wait_for(asyncio.gather(*others), 60)
            assert order == ["b", "c", "b"]
        finally:
            go_on.set()
            threads.close()

    asyncio.run(main())


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
def test_a_client_is_identified_by_its_key_or_by_its_network(address: str, client: str) -> None:
    scope: dict[str, Any] = {"type": "http", "method": "GET", "headers": [], "client": (address, 5) if address else None}
    with Recorder(None, None).record(scope) as record:
        assert record.context.client == client
        record.context.key_name = "alice"
        assert record.context.client == "alice"
    assert RequestContext().client == ""
