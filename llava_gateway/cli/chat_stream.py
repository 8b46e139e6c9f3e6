"""One streamed answer of an OpenAI-compatible server: its text as it comes, what it cost, and how long it took."""

import json
import re
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import httpx

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class ChatError(Exception):
    """Why there is no answer, or no more of it: one line for the user, in the server's words if it said any."""


@dataclass
class Answer:
    """What has come of an answer so far."""

    text: str = ""
    finish_reason: str = ""
    usage: dict[str, Any] = field(default_factory=dict)
    first: float | None = None
    """Seconds from the request to the first piece of text."""
    last: float = 0.0
    """Seconds from the request to the last piece of text."""

    def take(self, event: bytes) -> str:
        """The text that an event adds. Raises ChatError if the event is an error, or no chunk of a chat completion."""
        try:
            chunk = json.loads(event)
            if "error" in chunk:
                raise ChatError(_words(event) or "The server ended its answer with an error.")
            self.usage = chunk.get("usage") or self.usage
            text = ""
            for choice in chunk["choices"]:
                self.finish_reason = choice.get("finish_reason") or self.finish_reason
                text += printable((choice.get("delta") or {}).get("content") or "")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ChatError("The server's stream is not that of a chat completion.") from error
        self.text += text
        return text

    def summary(self) -> str:
        """Tokens and times, for people; empty if no text came. What the server does not count is left out."""
        if self.first is None:
            return ""
        details = self.usage.get("prompt_tokens_details")
        prompt, tokens = _count(self.usage, "prompt_tokens"), _count(self.usage, "completion_tokens")
        images = _count(details, "image_tokens")
        said = [f"prompt {prompt} tokens" + (f" ({images} of images)" if images else "")] if prompt else []
        said += [f"answer {tokens} tokens"] if tokens else []
        said += [f"first after {self.first:.2f} s"]
        said += [f"{(tokens - 1) / (self.last - self.first):.1f} tokens/s"] if tokens > 1 and self.last > self.first else []
        said += ["cut at its limit of tokens"] if self.finish_reason == "length" else []
        return ", ".join(said)


async def stream_answer(client: httpx.AsyncClient, body: dict[str, Any], answer: Answer, write: Callable[[str], None]) -> None:
    """Send a chat completion request and write its text as it comes, `answer` growing with it. Raises ChatError."""
    start = time.perf_counter()
    try:
        headers = {"content-type": "application/json"}
        async with client.stream("POST", "chat/completions", content=json.dumps(body), headers=headers) as response:
            if response.status_code != 200:
                await response.aread()
                raise _refusal(response)
            async with aclosing(_events(response)) as events:
                async for event in events:
                    if event == b"[DONE]":
                        return
                    if text := answer.take(event):
                        answer.last = time.perf_counter() - start
                        answer.first = answer.last if answer.first is None else answer.first
                        write(text)
    except httpx.HTTPError as error:
        raise _no_connection(client, error) from error
    if not answer.finish_reason:
        raise ChatError("The server closed the connection before its answer was whole.")


async def first_model(client: httpx.AsyncClient) -> str:
    """The first model that the server names. Raises ChatError."""
    try:
        response = await client.get("models")
    except httpx.HTTPError as error:
        raise _no_connection(client, error) from error
    if response.status_code != 200:
        raise _refusal(response)
    try:
        return str(response.json()["data"][0]["id"])
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise ChatError(f"{response.url} does not name a model; name one with --model.") from error


def printable(text: str) -> str:
    """A server's text without what could steer a terminal: control characters other than newline and tab become U+FFFD."""
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r", ""))


async def _events(response: httpx.Response) -> AsyncGenerator[bytes]:
    """The data of server-sent events; comments and other fields are skipped. (httpx's lines end at U+2028, too, which JSON may hold.)"""
    rest = b""
    async for piece in response.aiter_bytes():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()


def _refusal(response: httpx.Response) -> ChatError:
    said = _words(response.content) or f"{response.url} is not there, or not an OpenAI-compatible server's."
    return ChatError(f"{said} (status {response.status_code})")


def _no_connection(client: httpx.AsyncClient, error: httpx.HTTPError) -> ChatError:
    why = str(error) or type(error).__name__
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return ChatError(f"No server answers at {client.base_url} ({why}). Is it running? --base-url names another.")
    return ChatError(f"The connection to {client.base_url} broke: {why}")


def _words(body: bytes) -> str:
    """An error as the server words it, at most 1000 characters of it; empty if it says none."""
    try:
        said = json.loads(body)
        error = said.get("error") or said.get("detail") or said.get("message")
    except (ValueError, AttributeError):
        return ""
    words, field_path = (error.get("message"), error.get("param")) if isinstance(error, dict) else (error, None)
    if not isinstance(words, str):
        return ""
    where = f" ({field_path})" if isinstance(field_path, str) and field_path not in words else ""
    return " ".join(printable(words + where).split())[:1000]


def _count(counts: Any, name: str) -> int:
    value = counts.get(name) if isinstance(counts, dict) else None
    return value if isinstance(value, int) else 0
