"""A replica's end of the delta connections, without an engine and without Ray."""

import asyncio
from collections.abc import Awaitable, Callable

from llava_gateway.cluster.delta_receiver import DeltaReceiver
from llava_gateway.cluster.delta_sender import Address, DeltaSender, client_context, server_context
from llava_gateway.types import Delta, Usage

HOST = "127.0.0.1"


USAGE = Usage(prompt_tokens=587, image_tokens=576, cached_tokens=512, completion_tokens=1)


class SenderReplica:
    """A replica's end of the connections, without an engine."""

    def __init__(self) -> None:
        self.disconnected: list[str] = []
        """Names of gateways whose connection has ended."""
        self.sender = DeltaSender(self.disconnected.append)

    async def start(self) -> Address:
        self.address = await self.sender.start(HOST, server_context())
        return self.address

    def send_text(self, gateway: str, number: int, text: str) -> None:
        self.sender.send(gateway, number, Delta(0, text, 1), USAGE)


def run(work: Callable[[SenderReplica, DeltaReceiver], Awaitable[None]]) -> None:
    async def main() -> None:
        replica, receiver = SenderReplica(), DeltaReceiver(client_context())
        receiver.connect({"a": await replica.start()})
        assert await replica.sender.wait_until_connected(receiver.name)
        async with asyncio.timeout(60):
            await work(replica, receiver)

    asyncio.run(main())


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
