"""A gateway for tests of the chat page that need no model: the browser gets its answers from the test."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from helpers.server import free_port
from helpers.silent_engine import SilentEngine
from helpers.waiting import wait_for
from playwright.sync_api import Page, Route

from llava_gateway.app import create_app
from llava_gateway.settings import Settings


@contextmanager
def page_server() -> Iterator[str]:
    """Run a gateway with an engine that never answers. Yield its URL."""
    port = free_port()
    app = create_app(Settings(model="llava-demo"), engine=SilentEngine)
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(lambda: server.started)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def answer_with(page: Page, *answers: str) -> list[Any]:
    """Answer the page's next requests with these texts, the last one forever. Return a list that receives the requests' bodies."""
    bodies: list[Any] = []

    def fulfill(route: Route) -> None:
        bodies.append(route.request.post_data_json)
        text = answers[min(len(bodies), len(answers)) - 1]
        route.fulfill(content_type="text/event-stream", body=_stream(text, bodies[-1]["model"]))

    page.unroute_all()
    page.route("**/v1/chat/completions", fulfill)
    return bodies


def _stream(text: str, model: str) -> str:
    """Return an event stream with the text in up to 20 pieces. Each answer costs 10 text, 576 image and 20 completion tokens."""
    usage = {"completion_tokens": 20, "prompt_tokens_details": {"text_tokens": 10, "image_tokens": 576}}
    size = max(1, -(-len(text) // 20))
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    chunks: list[dict[str, Any]] = [{"model": model, "choices": [{"index": 0, "delta": {"content": piece}}]} for piece in pieces]
    chunks += [{"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}, {"choices": [], "usage": usage}]
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
