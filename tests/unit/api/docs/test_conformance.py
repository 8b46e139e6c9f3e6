"""Generated requests get the responses that the OpenAPI document promises, behind a real uvicorn, from an engine that answers at once.

tests/integration/api/test_fuzz.py does the same for the paths in ENGINE_PATHS.
"""

import threading
from collections.abc import Callable, Iterator
from typing import Any, get_args

import httpx
import pytest
import schemathesis
import uvicorn
from helpers.conformance import ENGINE_PATHS, check_conformance
from helpers.documentation import openapi
from helpers.requests import MODEL
from helpers.silent_engine import SilentEngine
from helpers.waiting import wait_for
from hypothesis import HealthCheck, Phase, settings

from llava_gateway.app import create_app
from llava_gateway.settings import ApiName, Settings
from llava_gateway.types import Delta, Prompt, SamplingParams, Usage

pytestmark = pytest.mark.slow


class AnsweringEngine(SilentEngine):
    """An engine that answers each request with one word."""

    async def generate(
        self,
        prompt: Prompt,
        sampling: SamplingParams,
        *,
        stream: bool,
        usage: Usage,
        on_delta: Callable[[Delta], None],
        on_text: Callable[[str, int], None] | None = None,
    ) -> None:
        usage.prompt_tokens, usage.completion_tokens = len(prompt.token_ids), 1
        on_delta(Delta(0, "Hello", 1, "stop"))


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(create_app(Settings(model=MODEL), engine=AnsweringEngine), port=0, log_config=None))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_for(lambda: server.started)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    wait_for(lambda: httpx.get(f"{url}/ready").status_code == 200)
    yield url
    server.should_exit = True
    thread.join(20)


APIS = tuple(name for name in get_args(ApiName) if name != "deepinfra")
"""DeepInfra's API has the handlers of OpenAI's."""
document = schemathesis.openapi.from_dict(openapi(apis=APIS)).exclude(path=list(ENGINE_PATHS))


@document.parametrize()
@settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    phases=(Phase.generate,),
)
def test_document_matches_the_responses(case: Any, url: str) -> None:
    check_conformance(case, case.call(base_url=url, timeout=60))
