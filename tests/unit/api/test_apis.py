"""Each API can be switched off."""

import pytest
from helpers.requests import MODEL
from starlette.routing import BaseRoute

from llava_gateway import create_app
from llava_gateway.app import APIS
from llava_gateway.settings import Settings


def paths(routes: list[BaseRoute]) -> set[str]:
    return {getattr(route, "path", "") for route in routes}


@pytest.mark.parametrize("name", APIS)
def test_api_can_be_switched_off(name: str) -> None:
    everything = create_app(Settings(model=MODEL))
    shut = create_app(Settings(model=MODEL, apis=tuple(door for door in APIS if door != name)))
    alone = create_app(Settings(model=MODEL, apis=(name,)))
    operators = {"/health", "/ready", "/metrics"}
    assert paths(shut.routes) | paths(alone.routes) == paths(everything.routes)
    assert paths(shut.routes) & paths(alone.routes) == operators
    assert paths(alone.routes) > operators
