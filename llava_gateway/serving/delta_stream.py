"""The stream of one request's deltas, from the engine that pushes them to the one reader who iterates."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

from llava_gateway.errors import EngineFailed
from llava_gateway.serving.prepare import PreparedRequest
from llava_gateway.types import ChatRequest, Delta, PromptLogprobs, ToolCallDelta, Usage

MAX_LOGPROBS = 64
"""Tokens with log probabilities in one delta for the reader."""

OnDelta = Callable[[Delta], bool]
"""Handles a delta at once and returns True, or returns False if it cannot just now."""
OnText = Callable[[str], bool]
"""The same for a delta of the only choice that has nothing but text."""


class DeltaStream:
    """The deltas of one request, and the tokens that it has used so far.

    Deltas that arrive while the reader is busy are held, and joined to one delta for each choice.
    """

    def __init__(self, prepared: PreparedRequest, usage: Usage, prompt_token_ids: Sequence[int] = ()) -> None:
        request = prepared.request
        self.model = prepared.model
        self.prompt = prepared.prompt
        """The prompt's text, with `<image>` for each image; empty if the client sent token ids."""
        self.prompt_token_ids = prompt_token_ids
        """The prompt's tokens with the images expanded, if the request asks for token ids or for log probabilities of the prompt."""
        self.prompt_logprobs: PromptLogprobs | None = None
        """Set before the first delta arrives, if the request asks for them."""
        self.usage = usage
        self.tools_ignored = prepared.tools_ignored
        """Whether the request's tools were left out of the prompt, because the model cannot call tools by itself."""
        self._tool_calls = prepared.tool_calls()
        starts_message = isinstance(request, ChatRequest) and not request.continue_last
        self._space = _LeadingSpace() if starts_message and request.sampling.structured_output is None else None
        self._copies = request.sampling.n // prepared.sampling.n
        self._is_text = request.sampling.n == 1 and prepared.sampling.logprobs is None and not self._tool_calls
        """Whether the answer has one choice, of text alone."""
        self._held: dict[int, Delta] = {}
        self._on_delta: OnDelta | None = None
        self._on_text: OnText | None = None
        self._generation: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._started = False

    def push(self, delta: Delta) -> None:
        """Accept the engine's next delta. n greedy choices are equal: the engine generates one, and this makes n of it."""
        if delta.prompt_logprobs:
            self.prompt_logprobs = delta.prompt_logprobs
            return
        if self._space:
            delta = self._space.strip(delta)
            if self._is_text and delta.text:
                self._space = None
        if self._tool_calls:
            delta = self._tool_calls.parse(delta)
        self._deliver(delta)
        for copy in range(1, self._copies):
            self.usage.completion_tokens += delta.tokens
            self._deliver(dataclasses.replace(delta, index=copy))

    def push_text(self, text: str, tokens: int) -> None:
        """Accept a delta of the only choice that has nothing but text. The same as `push`, and cheaper: it runs for every token."""
        if self._on_text and self._is_text and not self._space and self._on_text(text):
            return
        self.push(Delta(0, text, tokens))

    def end(self, generation: asyncio.Task[None]) -> None:
        """Accept the end of the engine's work: the task has returned, failed or been cancelled."""
        self._generation = generation
        if not generation.cancelled():
            generation.exception()  # marks the error as retrieved, in case the reader has left
        self._changed.set()

    async def wait_first_delta(self, timeout: float | None) -> None:
        """Return when the first delta has arrived, or after `timeout` seconds. Raises the error of an engine that has refused or failed."""
        try:
            async with asyncio.timeout(timeout):
                await self._changed.wait()
        except TimeoutError:
            return
        if not self._started:
            self._check()

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self.deltas()

    async def deltas(self, on_delta: OnDelta | None = None, on_text: OnText | None = None) -> AsyncIterator[Delta]:
        """Yield the deltas.

        `on_delta`: is called with a delta that arrives while the reader waits, in the engine's call stack, so that the reader's task need
        not be woken for each token. Only the deltas that it returns False for are yielded. `on_text`: may be called instead, after the
        first delta. Raises the engine's error.
        """
        try:
            while True:
                while self._held:
                    for part in _split(self._held.pop(next(iter(self._held)))):
                        yield part
                if self._generation:
                    self._check()
                    return
                self._on_delta, self._on_text = on_delta, on_text
                self._changed.clear()
                await self._changed.wait()
                self._on_delta = self._on_text = None
        finally:
            self._on_delta = self._on_text = None

    async def collect(self, add: Callable[[Delta], object]) -> None:
        """Call `add` with every delta as soon as it arrives, and return after the last one. Raises the engine's error."""

        def on_delta(delta: Delta) -> bool:
            add(delta)
            return True

        async for delta in self.deltas(on_delta):
            add(delta)

    def _deliver(self, delta: Delta) -> None:
        self._started = True
        if self._on_delta and self._on_delta(delta):
            return
        self._on_delta = self._on_text = None  # the next deltas must not overtake this one
        held = self._held.get(delta.index)
        self._held[delta.index] = _joined(held, delta) if held else delta
        self._changed.set()

    def _check(self) -> None:
        """Raise the engine's error, if it has ended with one."""
        assert self._generation
        self._generation.result()
        if not self._started:
            raise EngineFailed("The engine ended this request without an answer.")


def _joined(first: Delta, then: Delta) -> Delta:
    return dataclasses.replace(
        then,
        text=first.text + then.text,
        tokens=first.tokens + then.tokens,
        logprobs=first.logprobs + then.logprobs,
        tool_calls=_joined_calls(first.tool_calls, then.tool_calls),
        token_ids=first.token_ids + then.token_ids,
    )


def _joined_calls(first: tuple[ToolCallDelta, ...], then: tuple[ToolCallDelta, ...]) -> tuple[ToolCallDelta, ...]:
    """Join the last piece of `first` and the first piece of `then` if both continue the same call."""
    if not first or not then or first[-1].id or then[0].id:
        return first + then
    return *first[:-1], ToolCallDelta(first[-1].index, first[-1].arguments + then[0].arguments), *then[1:]


def _split(delta: Delta) -> Iterator[Delta]:
    """Split a delta with many log probabilities into parts that are rendered quickly. The last part has the text."""
    *others, last = range(0, max(len(delta.logprobs), 1), MAX_LOGPROBS)
    for start in others:
        yield Delta(delta.index, "", 0, logprobs=delta.logprobs[start : start + MAX_LOGPROBS])
    yield dataclasses.replace(delta, logprobs=delta.logprobs[last:]) if others else delta


class _LeadingSpace:
    """Strips the space between `ASSISTANT:` and the answer from the first text and the first token of each choice.

    The space belongs to the chat template, which writes it again when the answer comes back in the next turn. The first text and the first
    token may come in different deltas.
    """

    def __init__(self) -> None:
        self._texts: set[int] = set()
        self._tokens: set[int] = set()

    def strip(self, delta: Delta) -> Delta:
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
