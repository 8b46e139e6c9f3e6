"""One line asked of a server, again where that helps, and what came of it in the shape of OpenAI's batch output."""

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx
import orjson

from llava_gateway.batch.lines import ImageFileError, Line, with_local_images

BUSY = (429, 502, 503)
"""Statuses of a server that may answer the same request later."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds between two attempts; the pause doubles unless the server says when to come back."""


@dataclass(frozen=True)
class Asker:
    folder: Path
    """What relative paths of pictures start from."""
    model: str
    """For lines that name none."""
    patience: float
    """Seconds from a line's first failure until it is given up, if the server is busy or gone."""
    on_trouble: Callable[[str], None]
    """Told why a line is tried again."""

    async def ask(self, client: httpx.AsyncClient, line: Line) -> dict[str, Any]:
        """The line of output. `client`: of the API; paths are relative to its /v1. Raises nothing: what fails has an `error`."""
        try:
            content = await asyncio.to_thread(self._content, line)
            response = await self._post(client, line.url.removeprefix("/v1/"), content)
        except ImageFileError as error:
            return _entry(line, None, "picture_unreadable", str(error))
        except httpx.RequestError as error:
            return _entry(line, None, "no_answer", _reason(error))
        body = _json(response)
        found = {"status_code": response.status_code, "request_id": response.headers.get("x-request-id", ""), "body": body}
        if response.status_code == 200 and isinstance(body, dict):
            return _entry(line, found)
        if response.status_code == 200:
            return _entry(line, found, "no_json", "The server's answer is no JSON object.")
        said = body.get("error") if isinstance(body, dict) else None
        fault = said if isinstance(said, dict) else {}
        code = fault.get("code") or fault.get("type") or f"status_{response.status_code}"
        return _entry(line, found, str(code), str(fault.get("message") or f"The server answered with status {response.status_code}."))

    def _content(self, line: Line) -> bytes:
        """The request's body. Reads files, so it is not for the event loop. Raises PictureError."""
        return orjson.dumps(with_local_images({"model": self.model, **line.body}, self.folder))

    async def _post(self, client: httpx.AsyncClient, path: str, content: bytes) -> httpx.Response:
        """Raises httpx.RequestError."""
        deadline, backoff = 0.0, FIRST_PAUSE
        gone: httpx.TransportError | None
        while True:
            try:
                response = await client.post(path, content=content, headers={"content-type": "application/json"})
            except httpx.TransportError as error:
                gone, trouble, pause = error, _reason(error), backoff
            else:
                if response.status_code not in BUSY:
                    return response
                gone, trouble, pause = None, f"the server answers {response.status_code}", _retry_after(response) or backoff
            pause = min(pause, LONGEST_PAUSE) * random.uniform(1, 1.25)  # so that all lines do not come back at once
            deadline = deadline or time.monotonic() + self.patience
            if time.monotonic() + pause > deadline:
                if gone:
                    raise gone
                return response
            self.on_trouble(trouble)
            await asyncio.sleep(pause)
            backoff *= 2


def _reason(error: httpx.RequestError) -> str:
    return f"{type(error).__name__}: {error}".removesuffix(": ")  # some have no words


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds that the header asks for, as a number or a date (RFC 9110, 10.2.3). None if it asks for nothing."""
    value = response.headers.get("retry-after", "")
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _json(response: httpx.Response) -> Any:
    """The body, as text if it is no JSON."""
    try:
        return orjson.loads(response.content)
    except orjson.JSONDecodeError:
        return response.content.decode("utf-8", "replace")


def _entry(line: Line, response: dict[str, Any] | None, code: str = "", message: str = "") -> dict[str, Any]:
    error = {"code": code, "message": message} if code else None
    return {"id": line.id, "custom_id": line.custom_id, "response": response, "error": error}
