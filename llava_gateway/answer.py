"""What a request comes to: its deltas as the client sees them, and the tokens it has taken."""

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator

from llava_gateway.chat import ChatRequest, Delta, Request, Usage
from llava_gateway.errors import EngineFailed


class Answer:
    """The deltas of one request, and what it has used so far."""

    def __init__(self, prompt: str, deltas: AsyncIterator[Delta], usage: Usage) -> None:
        self.prompt = prompt
        """Its text, `<image>` for each image; empty where the client sent token ids."""
        self._deltas = deltas
        self.usage = usage

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self._deltas


async def first_delta(deltas: AsyncGenerator[Delta]) -> Delta:
    if (first := await anext(deltas, None)) is None:
        raise EngineFailed("The engine ended this request without an answer.")
    return first


async def choices(first: asyncio.Task[Delta], rest: AsyncGenerator[Delta], request: Request, usage: Usage) -> AsyncIterator[Delta]:
    """The engine's deltas as the client sees them. n greedy choices are one, n times: the engine draws it once."""
    begins = isinstance(request, ChatRequest) and not request.continue_last
    space = _LeadingSpace() if begins and request.sampling.structure is None else None
    copies = request.sampling.n if request.sampling.temperature == 0 else 1
    delta: Delta | None = await first
    while delta is not None:
        if space:
            delta = space.cut(delta)
        yield delta
        for copy in range(1, copies):
            usage.completion_tokens += delta.tokens
            yield dataclasses.replace(delta, index=copy)
        delta = await anext(rest, None)


class _LeadingSpace:
    """The space between `ASSISTANT:` and the answer of a chat is the template's, which writes it again when the answer comes back in the
    next turn. It is cut from the text and from the first token of each choice; the two may come in different deltas."""

    def __init__(self) -> None:
        self._texts: set[int] = set()
        self._tokens: set[int] = set()

    def cut(self, delta: Delta) -> Delta:
        if delta.text and delta.index not in self._texts:
            self._texts.add(delta.index)
            delta = dataclasses.replace(delta, text=delta.text.removeprefix(" "))
        if delta.logprobs and delta.index not in self._tokens:
            self._tokens.add(delta.index)
            first, *others = delta.logprobs
            top = tuple((token.removeprefix(b" "), logprob) for token, logprob in first.top)
            first = dataclasses.replace(first, token=first.token.removeprefix(b" "), top=top)
            delta = dataclasses.replace(delta, logprobs=(first, *others))
        return delta
