"""Each API can be switched off."""

import pytest
from helpers.requests import MODEL
from starlette.routing import BaseRoute, Route, WebSocketRoute

from llava_gateway import create_app
from llava_gateway.app import APIS
from llava_gateway.settings import Settings


def paths(routes: list[BaseRoute]) -> set[str]:
    return {route.path for route in routes if isinstance(route, Route | WebSocketRoute)}


@pytest.mark.parametrize("name", APIS)
def test_api_can_be_switched_off(name: str) -> None:
    everything = create_app(Settings(model=MODEL))
    without = create_app(Settings(model=MODEL, apis=tuple(api for api in APIS if api != name)))
    alone = create_app(Settings(model=MODEL, apis=(name,)))
    always = {"/health", "/ready", "/metrics", "/openapi.json", "/docs"}
    assert paths(without.routes) | paths(alone.routes) == paths(everything.routes)
    shared = {"/"} if name in ("ollama", "chat_ui") else set()  # the chat page for browsers, and a greeting for Ollama's clients
    assert paths(without.routes) & paths(alone.routes) == always | shared
    assert paths(alone.routes) > always
