"""A conversation with one model of an OpenAI-compatible server: its messages, and the answers that stream in."""

import asyncio
import json
import re
import sys
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import httpx

MessageJson = dict[str, Any]
"""A message in the format of the OpenAI API."""
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
MAX_ERROR = 1000
"""Characters of a server's error message that are shown."""


class ChatError(Exception):
    """The reason why an answer is missing or incomplete, as one line for the user. Quotes the server's message if there is one."""


@dataclass
class ChatAnswer:
    """An answer while it streams, and its tokens and times."""

    text: str = ""
    finish_reason: str = ""
    usage: dict[str, Any] = field(default_factory=dict)
    first: float | None = None
    """Seconds from the request to the first piece of text."""
    last: float = 0.0
    """Seconds from the request to the last piece of text."""

    def add(self, event: bytes) -> str:
        """Add an event's chunk and return its text. Raises ChatError if the event is an error or not a chunk of a chat completion."""
        try:
            chunk = json.loads(event)
            if "error" in chunk:
                raise ChatError(_error_message(event) or "The server ended its answer with an error.")
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
        """Return a line with tokens and times. Empty if the answer has no text. Counts that the server does not report are left out."""
        if self.first is None:
            return ""
        details = self.usage.get("prompt_tokens_details")
        prompt, tokens = _token_count(self.usage, "prompt_tokens"), _token_count(self.usage, "completion_tokens")
        images = _token_count(details, "image_tokens")
        parts = [f"prompt {prompt} tokens" + (f" ({images} of images)" if images else "")] if prompt else []
        parts += [f"answer {tokens} tokens"] if tokens else []
        parts += [f"first token after {self.first:.2f} s"]
        parts += [f"{(tokens - 1) / (self.last - self.first):.1f} tokens/s"] if tokens > 1 and self.last > self.first else []
        parts += ["cut off at the maximum length"] if self.finish_reason == "length" else []
        return ", ".join(parts)


@dataclass
class Conversation:
    """The messages so far. Answers are written to standard output while they stream."""

    client: httpx.AsyncClient
    runner: asyncio.Runner
    fields: dict[str, Any]
    """Fields of every request: the model and its sampling parameters."""
    system: str = ""
    images: list[MessageJson] = field(default_factory=list)
    """Parts that are sent with the next question."""
    turns: list[MessageJson] = field(default_factory=list)
    """Questions and answers in turn."""
    last_question: MessageJson | None = None
    """The last question, with or without an answer."""

    def messages(self) -> list[MessageJson]:
        """Return the system message and all turns."""
        return [{"role": "system", "content": self.system}, *self.turns] if self.system else list(self.turns)

    @property
    def answered(self) -> bool:
        """Whether the last question has a complete or partial answer."""
        return len(self.turns) > 1 and self.turns[-2] is self.last_question

    def ask(self, question: str) -> ChatAnswer:
        """Send a new question with the images that wait for it. Raises ChatError.

        Raises KeyboardInterrupt if the user stops the answer. A partial answer is kept; a question without any answer is dropped.
        """
        content = [*self.images, {"type": "text", "text": question}] if self.images else question
        self.last_question, self.images = {"role": "user", "content": content}, []
        return self._answer(self.last_question)

    def retry(self) -> ChatAnswer | None:
        """Send the last question again and replace its answer. Returns None if there is no question. Raises like `ask`."""
        if self.last_question is None:
            return None
        if self.answered:
            del self.turns[-2:]
        return self._answer(self.last_question)

    def clear(self) -> None:
        """Forget everything except the system message."""
        self.turns, self.images, self.last_question = [], [], None

    def _answer(self, question: MessageJson) -> ChatAnswer:
        answer = ChatAnswer()
        body = {**self.fields, "messages": [*self.messages(), question], "stream": True, "stream_options": {"include_usage": True}}
        try:
            self.runner.run(stream_answer(self.client, body, answer, _write))
        finally:
            if answer.text:
                self.turns += [question, {"role": "assistant", "content": answer.text}]
                _write("" if answer.text.endswith("\n") else "\n")
        return answer


async def stream_answer(client: httpx.AsyncClient, body: dict[str, Any], answer: ChatAnswer, write: Callable[[str], None]) -> None:
    """Send a chat completion request and stream its answer.

    `answer`: filled while the text arrives. `write`: called with each piece of text. Raises ChatError.
    """
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
                    if text := answer.add(event):
                        answer.last = time.perf_counter() - start
                        answer.first = answer.last if answer.first is None else answer.first
                        write(text)
    except httpx.HTTPError as error:
        raise _connection_error(client, error) from error
    if not answer.finish_reason:
        raise ChatError("The server closed the connection before its answer was whole.")


async def first_model(client: httpx.AsyncClient) -> str:
    """Return the first model that the server lists. Raises ChatError."""
    try:
        response = await client.get("models")
    except httpx.HTTPError as error:
        raise _connection_error(client, error) from error
    if response.status_code != 200:
        raise _refusal(response)
    try:
        return str(response.json()["data"][0]["id"])
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise ChatError(f"{response.url} lists no model; choose one with --model.") from error


def printable(text: str) -> str:
    """Return a server's text without characters that could control the terminal.

    Control characters other than newline and tab become U+FFFD.
    """
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r", ""))


async def _events(response: httpx.Response) -> AsyncGenerator[bytes]:
    """Yield the data of server-sent events. Comments and other fields are skipped.

    httpx's own `aiter_lines` is not used: it also splits lines at U+2028, which JSON strings may contain.
    """
    rest = b""
    async for piece in response.aiter_bytes():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()


def _refusal(response: httpx.Response) -> ChatError:
    message = _error_message(response.content) or f"{response.url} does not exist, or the server is not OpenAI-compatible."
    return ChatError(f"{message} (status {response.status_code})")


def _connection_error(client: httpx.AsyncClient, error: httpx.HTTPError) -> ChatError:
    reason = str(error) or type(error).__name__
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return ChatError(f"No server answers at {client.base_url} ({reason}). Is it running? Set another URL with --base-url.")
    return ChatError(f"The connection to {client.base_url} broke: {reason}")


def _error_message(body: bytes) -> str:
    """Return the message of a server's error, up to MAX_ERROR characters, with the field that it names. Empty if there is none."""
    try:
        value = json.loads(body)
        error = value.get("error") or value.get("detail") or value.get("message")
    except (ValueError, AttributeError):
        return ""
    message, param = (error.get("message"), error.get("param")) if isinstance(error, dict) else (error, None)
    if not isinstance(message, str):
        return ""
    where = f" ({param})" if isinstance(param, str) and param not in message else ""
    return " ".join(printable(message + where).split())[:MAX_ERROR]


def _token_count(counts: Any, name: str) -> int:
    value = counts.get(name) if isinstance(counts, dict) else None
    return value if isinstance(value, int) else 0


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
