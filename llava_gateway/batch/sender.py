"""Sends one line of a batch to a server, with retries, and returns the answer in the format of OpenAI's batch output."""

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

from llava_gateway.batch.lines import RequestLine
from llava_gateway.batch.local_images import ImageFileError, with_local_images

RETRIED_STATUSES = (429, 502, 503)
"""Statuses of a server that may answer the same request later."""
FIRST_PAUSE, MAX_PAUSE = 1.0, 60.0
"""Seconds between two attempts. The pause doubles after each attempt, unless the server sends Retry-After."""


@dataclass(frozen=True)
class RequestSender:
    """Sends lines to a server. A line that fails gets an error in the output."""

    folder: Path
    """The folder that relative paths of images start from."""
    model: str
    """The model for lines that name no model."""
    patience: float
    """Seconds from a line's first failure until it counts as failed, if the server is busy or cannot be reached."""
    on_retry: Callable[[str], None]
    """Called with the reason before a line is sent again."""

    async def send(self, client: httpx.AsyncClient, line: RequestLine) -> dict[str, Any]:
        """Send a line and return its line of output: `id`, `custom_id`, `response` and `error`.

        `client`: its base URL is the API's, with /v1. Raises nothing: a failure is returned as `error`.
        """
        try:
            content = await asyncio.to_thread(self._content, line)
            response = await self._post(client, line.url.removeprefix("/v1/"), content)
        except ImageFileError as error:
            return _output_line(line, None, "picture_unreadable", str(error))
        except httpx.RequestError as error:
            return _output_line(line, None, "no_answer", _reason(error))
        body = _json_or_text(response)
        answer = {"status_code": response.status_code, "request_id": response.headers.get("x-request-id", ""), "body": body}
        if response.status_code == 200 and isinstance(body, dict):
            return _output_line(line, answer)
        if response.status_code == 200:
            return _output_line(line, answer, "no_json", "The server's answer is not a JSON object.")
        error_field = body.get("error") if isinstance(body, dict) else None
        fault = error_field if isinstance(error_field, dict) else {}
        code = fault.get("code") or fault.get("type") or f"status_{response.status_code}"
        message = fault.get("message") or f"The server answered with status {response.status_code}."
        return _output_line(line, answer, str(code), str(message))

    def _content(self, line: RequestLine) -> bytes:
        """Return the request's body as JSON. Reads image files, so it must not run on the event loop. Raises ImageFileError."""
        return orjson.dumps(with_local_images({"model": self.model, **line.body}, self.folder))

    async def _post(self, client: httpx.AsyncClient, path: str, content: bytes) -> httpx.Response:
        """Send the request until it is answered or `patience` is over. Raises httpx.RequestError."""
        deadline, backoff = 0.0, FIRST_PAUSE
        failure: httpx.TransportError | None
        while True:
            try:
                response = await client.post(path, content=content, headers={"content-type": "application/json"})
            except httpx.TransportError as error:
                failure, reason, pause = error, _reason(error), backoff
            else:
                if response.status_code not in RETRIED_STATUSES:
                    return response
                failure, reason, pause = None, f"the server answers {response.status_code}", _retry_after(response) or backoff
            pause = min(pause, MAX_PAUSE) * random.uniform(1, 1.25)  # so that the lines are not all sent again at the same moment
            deadline = deadline or time.monotonic() + self.patience
            if time.monotonic() + pause > deadline:
                if failure:
                    raise failure
                return response
            self.on_retry(reason)
            await asyncio.sleep(pause)
            backoff *= 2


def _reason(error: httpx.RequestError) -> str:
    return f"{type(error).__name__}: {error}".removesuffix(": ")  # some errors have no message


def _retry_after(response: httpx.Response) -> float | None:
    """Return the seconds of the Retry-After header, a number or a date (RFC 9110, 10.2.3). None: no valid header."""
    value = response.headers.get("retry-after", "")
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _json_or_text(response: httpx.Response) -> Any:
    """Return the body: parsed if it is JSON, otherwise as text."""
    try:
        return orjson.loads(response.content)
    except orjson.JSONDecodeError:
        return response.content.decode("utf-8", "replace")


def _output_line(line: RequestLine, response: dict[str, Any] | None, code: str = "", message: str = "") -> dict[str, Any]:
    error = {"code": code, "message": message} if code else None
    return {"id": line.id, "custom_id": line.custom_id, "response": response, "error": error}
