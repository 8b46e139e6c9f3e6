"""The chat page at `/`: the HTML, CSS and JavaScript files in static/.

The files need no API key. The page calls the OpenAI API like any other client, and these calls need one.
"""

import hashlib
from collections.abc import Mapping
from importlib import resources
from pathlib import PurePath

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from llava_gateway.api.base import Api
from llava_gateway.http.request_body import RequestBodyReader
from llava_gateway.http.response import ErrorRenderer
from llava_gateway.serving.gateway import Gateway

MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
FILES: Mapping[str, bytes] = {
    file.name: file.read_bytes() for file in resources.files("llava_gateway.api.chat_ui").joinpath("static").iterdir()
}
POLICY = "; ".join(
    (
        *("default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'", "img-src 'self' data:"),
        *("base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"),
        *("require-trusted-types-for 'script'", "trusted-types 'none'"),
    )
)
"""The Content Security Policy: the page loads nothing from other origins, and text never becomes HTML. Images are data: URLs."""


def create_api(gateway: Gateway, body_reader: RequestBodyReader, *, render_error: ErrorRenderer) -> Api:
    """Create the API for the page.

    `render_error`: the OpenAI API's. A client whose base URL lacks `/v1` sends its requests to these paths.
    """
    body = b"<body data-feedback>" if gateway.settings.feedback_dir else b"<body>"
    files = {f"/page/{name}": File(name, content) for name, content in FILES.items() if name != "index.html"}
    files["/"] = File("index.html", FILES["index.html"].replace(b"<body>", body))
    return Api([Route(path, file.get, methods=["GET"]) for path, file in files.items()], render_error, public=tuple(files))


class File:
    """One file of the page. Browsers cache it, and ask each time whether it has changed."""

    def __init__(self, name: str, content: bytes) -> None:
        self._content = content
        self._media_type = MEDIA_TYPES[PurePath(name).suffix]
        self._etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        self._headers = {"etag": self._etag, "cache-control": "no-cache", "content-security-policy": POLICY}

    async def get(self, request: Request) -> Response:
        """Return the file, or 304 if the browser has it."""
        if self._etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=self._headers)
        return Response(self._content, media_type=self._media_type, headers=self._headers)
