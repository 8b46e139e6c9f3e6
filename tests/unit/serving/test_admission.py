import asyncio
from typing import Any

import pytest

from llava_gateway.errors import RequestTimeout, TooManyRequests, Unavailable
from llava_gateway.serving.admission import Admission, RequestQueue
from llava_gateway.settings import Settings


def places_of(max_running: int, max_queued: int, **settings: Any) -> RequestQueue:
    return RequestQueue(Settings(max_running=max_running, max_queued=max_queued, **settings))


def admission_of(max_running: int, max_queued: int, *places: RequestQueue, **settings: Any) -> Admission:
    given = Settings(max_running=max_running, max_queued=max_queued, **settings)
    return Admission(given, places or (RequestQueue(given),))


async def hold(places: RequestQueue, entered: list[int], number: int, leave: asyncio.Event) -> None:
    async with places.slot(1):
        entered.append(number)
        await leave.wait()


def test_queue_is_first_come_first_served() -> None:
    async def scenario() -> None:
        entered: list[int] = []
        places = places_of(2, 2)
        leaves = [asyncio.Event() for _ in range(4)]
        tasks = [asyncio.create_task(hold(places, entered, number, leave)) for number, leave in enumerate(leaves)]
        await asyncio.sleep(0)
        assert (entered, places.running, places.queued) == ([0, 1], 2, 2)
        with pytest.raises(TooManyRequests) as refusal:
            await hold(places, entered, 9, leaves[0])
        assert refusal.value.retry_after
        leaves[1].set()
        await asyncio.sleep(0.01)
        assert (entered, places.running, places.queued) == ([0, 1, 2], 2, 1)
        for leave in leaves:
            leave.set()
        await asyncio.gather(*tasks)
        assert (entered, places.running, places.queued) == ([0, 1, 2, 3], 0, 0)

    asyncio.run(scenario())


@pytest.mark.parametrize("released_at_once", [False, True])
def test_disconnected_waiting_request_frees_its_queue_position(released_at_once: bool) -> None:
    async def scenario() -> None:
        entered: list[int] = []
        places = places_of(1, 5)
        leave = asyncio.Event()
        first = asyncio.create_task(hold(places, entered, 0, leave))
        await asyncio.sleep(0)
        waiting = asyncio.create_task(hold(places, entered, 1, leave))
        await asyncio.sleep(0)
        if released_at_once:  # the place is handed over in the very step in which the client leaves
            leave.set()
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        leave.set()
        await first
        assert (places.running, places.queued) == (0, 0)
        await asyncio.wait_for(hold(places, entered, 2, leave), 1)

    asyncio.run(scenario())


def test_failed_request_frees_its_slot() -> None:
    async def scenario() -> None:
        places = places_of(1, 0)
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                async with places.slot(1):
                    raise ZeroDivisionError
        assert places.running == 0

    asyncio.run(scenario())


def test_token_limit_holds_beside_the_request_limit() -> None:
    async def scenario() -> None:
        places, order = places_of(10, 10, max_running_tokens=100, max_queued_tokens=150), []
        leave = asyncio.Event()

        async def ask(name: str, tokens: int) -> None:
            async with places.slot(tokens):
                order.append(name)
                await leave.wait()

        tasks = [asyncio.create_task(ask(name, tokens)) for name, tokens in (("a", 60), ("b", 60), ("c", 10), ("d", 90))]
        await asyncio.sleep(0)
        assert (order, places.running_tokens, places.queued_tokens) == (["a"], 60, 160)  # nobody overtakes, however small
        with pytest.raises(TooManyRequests):
            await ask("e", 1)
        assert not places.accepts_more
        tasks[1].cancel()
        await asyncio.sleep(0.01)
        assert order == ["a", "c"]  # the one that it waited behind has left
        leave.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert order == ["a", "c", "d"]
        assert (places.running, places.running_tokens, places.queued_tokens) == (0, 0, 0)

    asyncio.run(scenario())


def test_prompt_over_the_token_limit_runs_alone() -> None:
    async def scenario() -> None:
        places = places_of(2, 2, max_running_tokens=10)
        async with places.slot(1000):
            assert places.running == 1

    asyncio.run(scenario())


def test_waiting_request_times_out() -> None:
    async def scenario() -> None:
        places = places_of(1, 5, queue_timeout=0.05)
        async with places.slot(1):
            with pytest.raises(TooManyRequests) as refusal:
                async with places.slot(1):
                    pass
        assert refusal.value.code == "queue_timeout"
        assert (places.running, places.queued, places.queued_tokens) == (0, 0, 0)

    asyncio.run(scenario())


def test_full_or_closed_admission_refuses() -> None:
    async def scenario() -> None:
        admission = admission_of(1, 1)
        async with admission.enter(), admission.enter():
            with pytest.raises(TooManyRequests):
                await enter(admission)
            assert admission.in_flight == 2
        assert admission.in_flight == 0
        admission.close(Unavailable("closing", code="shutting_down"))
        with pytest.raises(Unavailable):
            await enter(admission)

    asyncio.run(scenario())


def test_full_queue_refuses_before_the_body_is_read() -> None:
    async def scenario() -> None:
        busy, other = places_of(1, 0), places_of(1, 0)
        admission = admission_of(1, 0, busy, other)
        async with busy.slot(1):
            admission.check_open()  # the other model's clients find one
            async with other.slot(1):
                assert (admission.running, admission.queued) == (2, 0)
                with pytest.raises(TooManyRequests):
                    admission.check_open()

    asyncio.run(scenario())


async def enter(admission: Admission, seconds: float = 0) -> None:
    async with admission.enter():
        await asyncio.sleep(seconds)


def test_late_or_aborted_request_gets_its_own_error() -> None:
    async def scenario() -> None:
        admission = admission_of(5, 5, request_timeout=0.05)
        with pytest.raises(RequestTimeout):
            await enter(admission, 5)
        with pytest.raises(TimeoutError):  # another's, which is not the request's
            async with admission.enter():
                raise TimeoutError
        patient = admission_of(5, 5)
        inside = asyncio.create_task(enter(patient, 5))
        await asyncio.sleep(0)
        patient.abort_all(Unavailable("cut", code="shutting_down"))
        with pytest.raises(Unavailable, match="cut"):
            await inside
        assert (admission.in_flight, patient.in_flight) == (0, 0)

    asyncio.run(scenario())
