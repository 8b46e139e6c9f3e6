"""A server of OpenAI's API that answers each request as a test says."""

import http.server
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Handle = Callable[[http.server.BaseHTTPRequestHandler], None]


@contextmanager
def faulty_server(*answers: Handle) -> Iterator[str]:
    """Run a server that handles each request with the next handler, and all later requests with the last one."""
    left = list(answers)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(200, {"data": [{"id": "some-model"}]})(self)

        def do_POST(self) -> None:
            self.asked = self.rfile.read(int(self.headers["content-length"]))
            (left.pop(0) if len(left) > 1 else left[0])(self)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def answer(status: int, value: Any, **headers: str) -> Handle:
    def handle(handler: http.server.BaseHTTPRequestHandler) -> None:
        content = json.dumps(value).encode() if not isinstance(value, bytes) else value
        handler.send_response(status)
        for name, text in headers.items():
            handler.send_header(name.replace("_", "-"), text)
        handler.send_header("content-length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    return handle
