import asyncio

import pytest

from llava_gateway.concurrency import cancel_and_wait


def test_second_cancellation_still_waits_for_the_task() -> None:
    async def scenario() -> None:
        said: list[str] = []

        async def work() -> None:
            try:
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0.02)
                said.append("what was used")

        async def serve() -> None:
            try:
                await cancel_and_wait(task)
            finally:
                said.append("served")

        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        serving = asyncio.create_task(serve())
        for _ in range(2):
            await asyncio.sleep(0)
            serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        assert said == ["what was used", "served"]

    asyncio.run(scenario())


def test_finished_task_is_accepted() -> None:
    async def scenario() -> None:
        task = asyncio.create_task(asyncio.sleep(0, "done"))
        await task
        await cancel_and_wait(task)
        assert task.result() == "done"

    asyncio.run(scenario())
