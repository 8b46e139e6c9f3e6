"""A dialect, as the app sees it: where it answers, and how it says no."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from starlette.routing import BaseRoute, Match
from starlette.types import Receive, Scope, Send

from llava_gateway.errors import GatewayError
from llava_gateway.http.request_body import Bodies
from llava_gateway.http.response import Fail, FailFor, Reply
from llava_gateway.observability.context import current
from llava_gateway.serving.gateway import Gateway


@dataclass(frozen=True)
class Door:
    routes: list[BaseRoute]
    fail: Fail
    public: Sequence[str] = ()
    """Paths that need no key."""


MakeDoor = Callable[[Gateway, Bodies], Door]


def fail_by_path(doors: Sequence[Door], otherwise: Fail) -> FailFor:
    """Errors in the words of the door that has the request's path, whatever its method."""

    def fail_for(scope: Scope) -> Fail:
        for door in doors:
            if any(route.matches(scope)[0] != Match.NONE for route in door.routes):
                return door.fail
        return otherwise

    return fail_for


@dataclass(frozen=True)
class Failure:
    """A response that is an error."""

    error: GatewayError
    fail: Fail
    headers: Mapping[str, str]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        current().code = self.error.code or self.error.type
        headers = ((name.encode(), value.encode()) for name, value in self.headers.items())
        await self.fail(self.error, Reply(send, headers=headers))
