"""LLaVA's own controller and worker."""

from llava_gateway.errors import GatewayError
from llava_gateway.gateway import Gateway
from llava_gateway.web.body import Bodies
from llava_gateway.web.door import Door
from llava_gateway.web.reply import Reply


def door(gateway: Gateway, bodies: Bodies) -> Door:
    return Door([], fail)


async def fail(error: GatewayError, reply: Reply) -> None:
    raise NotImplementedError
