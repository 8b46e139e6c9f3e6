"""Which running answers a client's stop request ends."""

import asyncio

import pytest

from llava_gateway.api.text_generation_webui.running_answers import RunningAnswers


def test_stop_ends_all_running_answers_of_one_client() -> None:
    async def wait(running: RunningAnswers, caller: str) -> str:
        async with running.until_stopped(caller):
            await asyncio.sleep(60)
        return caller

    async def main() -> None:
        running = RunningAnswers()
        mine = [asyncio.create_task(wait(running, "me")) for _ in range(2)]
        other, leaver = (asyncio.create_task(wait(running, who)) for who in ("you", "me"))
        await asyncio.sleep(0)
        leaver.cancel()
        running.stop("me")
        running.stop("me")  # a second stop in a row does nothing
        assert await asyncio.wait_for(asyncio.gather(*mine), 60) == ["me", "me"]
        with pytest.raises(asyncio.CancelledError):
            await leaver
        assert not other.done()
        running.stop("you")
        assert await asyncio.wait_for(other, 60) == "you"
        with pytest.raises(TimeoutError):  # a timeout of the block's own is not a stop
            async with running.until_stopped("me"):
                raise TimeoutError
        assert not running._clients

    asyncio.run(main())
