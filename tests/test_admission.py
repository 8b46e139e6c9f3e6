import asyncio

import pytest

from llava_gateway.admission import Admission
from llava_gateway.errors import TooManyRequests


async def hold(admission: Admission, entered: list[int], number: int, leave: asyncio.Event) -> None:
    async with admission.slot():
        entered.append(number)
        await leave.wait()


def test_first_come_first_served_within_bounds() -> None:
    async def scenario() -> None:
        admission, entered = Admission(max_running=2, max_queued=2), []
        leaves = [asyncio.Event() for _ in range(4)]
        tasks = [asyncio.create_task(hold(admission, entered, number, leave)) for number, leave in enumerate(leaves)]
        await asyncio.sleep(0)
        assert (entered, admission.running, admission.queued) == ([0, 1], 2, 2)
        with pytest.raises(TooManyRequests) as refusal:
            await hold(admission, entered, 9, leaves[0])
        assert refusal.value.retry_after
        leaves[1].set()
        await asyncio.sleep(0.01)
        assert (entered, admission.running, admission.queued) == ([0, 1, 2], 2, 1)
        for leave in leaves:
            leave.set()
        await asyncio.gather(*tasks)
        assert (entered, admission.running, admission.queued) == ([0, 1, 2, 3], 0, 0)

    asyncio.run(scenario())


@pytest.mark.parametrize("released_at_once", [False, True])
def test_a_queued_client_that_leaves_frees_its_place(released_at_once: bool) -> None:
    async def scenario() -> None:
        admission, entered = Admission(max_running=1, max_queued=5), []
        leave = asyncio.Event()
        first = asyncio.create_task(hold(admission, entered, 0, leave))
        await asyncio.sleep(0)
        waiting = asyncio.create_task(hold(admission, entered, 1, leave))
        await asyncio.sleep(0)
        if released_at_once:  # the place is handed over in the very step in which the client leaves
            leave.set()
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        leave.set()
        await first
        assert (admission.running, admission.queued) == (0, 0)
        await asyncio.wait_for(hold(admission, entered, 2, leave), 1)

    asyncio.run(scenario())


def test_a_failure_inside_frees_the_place() -> None:
    async def scenario() -> None:
        admission = Admission(max_running=1, max_queued=0)
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                async with admission.slot():
                    raise ZeroDivisionError
        assert admission.running == 0

    asyncio.run(scenario())
