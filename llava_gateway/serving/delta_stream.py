"""What a request comes to: its deltas as the client sees them, and the tokens it has taken."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Iterator

from llava_gateway.errors import EngineFailed
from llava_gateway.types import ChatRequest, Delta, Request, Usage

MAX_LOGPROBS = 64
"""Tokens with log probabilities in one delta for the reader."""

Take = Callable[[Delta], bool]
"""Takes a delta on the spot, or says that it cannot just now."""


class Answer:
    """The deltas of one request, from the engine that gives them to the one reader who iterates, and what the request has used so far."""

    def __init__(self, prompt: str, request: Request, usage: Usage) -> None:
        self.prompt = prompt
        """Its text, `<image>` for each image; empty where the client sent token ids."""
        self.usage = usage
        begins = isinstance(request, ChatRequest) and not request.continue_last
        self._space = _LeadingSpace() if begins and request.sampling.structure is None else None
        self._copies = request.sampling.n if request.sampling.temperature == 0 else 1
        self._held: dict[int, Delta] = {}
        self._take: Take | None = None
        self._work: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        self._begun = False

    def give(self, delta: Delta) -> None:
        """The engine's next delta. n greedy choices are one, n times: the engine draws it once."""
        if self._space:
            delta = self._space.cut(delta)
        self._pass_on(delta)
        for copy in range(1, self._copies):
            self.usage.completion_tokens += delta.tokens
            self._pass_on(dataclasses.replace(delta, index=copy))

    def end(self, work: asyncio.Task[None]) -> None:
        """The engine's work is done, well or not."""
        self._work = work
        if not work.cancelled():
            work.exception()  # has been seen, should the reader have left
        self._news.set()

    async def begin(self, timeout: float | None) -> None:
        """Returns with the first delta, or after so many seconds. Raises what the engine has refused or failed with by then."""
        try:
            async with asyncio.timeout(timeout):
                await self._news.wait()
        except TimeoutError:
            return
        if not self._begun:
            self._check()

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self.deltas()

    async def deltas(self, take: Take | None = None) -> AsyncIterator[Delta]:
        """Those that come while the reader is at another are held for it, and become one for each choice. With `take`, deltas that come
        while the reader waits are given to it, which spares waking the reader for each token; here come those that it could not take."""
        try:
            while True:
                while self._held:
                    for part in _split(self._held.pop(next(iter(self._held)))):
                        yield part
                if self._work:
                    self._check()
                    return
                self._take = take
                self._news.clear()
                await self._news.wait()
                self._take = None
        finally:
            self._take = None

    async def collect(self, add: Callable[[Delta], None]) -> None:
        """Give all deltas to `add` as soon as they come, from which it makes the whole answer piece by piece."""

        def take(delta: Delta) -> bool:
            add(delta)
            return True

        async for delta in self.deltas(take):
            add(delta)

    def _pass_on(self, delta: Delta) -> None:
        self._begun = True
        if self._take and self._take(delta):
            return
        self._take = None  # those that follow wait behind this one
        held = self._held.get(delta.index)
        self._held[delta.index] = _joined(held, delta) if held else delta
        self._news.set()

    def _check(self) -> None:
        """What the end of the engine's work means."""
        assert self._work
        self._work.result()
        if not self._begun:
            raise EngineFailed("The engine ended this request without an answer.")


def _joined(first: Delta, then: Delta) -> Delta:
    return dataclasses.replace(
        then, text=first.text + then.text, tokens=first.tokens + then.tokens, logprobs=first.logprobs + then.logprobs
    )


def _split(delta: Delta) -> Iterator[Delta]:
    """A delta with many log probabilities, joined for a slow reader, in parts that are rendered quickly. The last part has the text."""
    *others, last = range(0, max(len(delta.logprobs), 1), MAX_LOGPROBS)
    for start in others:
        yield Delta(delta.index, "", 0, logprobs=delta.logprobs[start : start + MAX_LOGPROBS])
    yield dataclasses.replace(delta, logprobs=delta.logprobs[last:]) if others else delta


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
