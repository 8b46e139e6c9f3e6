"""The endpoint `/v1/completions`: one or several prompts, answered whole or as one stream."""

import asyncio
from contextlib import ExitStack

from llava_gateway.api.openai.completion_request import TextCompletionRequest, to_completions
from llava_gateway.api.openai.completion_response import Echo, TextChunkRenderer, collect_text_choices, render_text_completion
from llava_gateway.api.openai.streaming import ChunkFramer, RenderOptions, answer_fields
from llava_gateway.concurrency import cancel_and_wait, gather_limited
from llava_gateway.http.response import JSON, Parts, ResponseWriter
from llava_gateway.serving.delta_stream import DeltaStream
from llava_gateway.serving.gateway import Gateway
from llava_gateway.serving.prepare import PreparedRequest
from llava_gateway.types import CompletionRequest, Usage


class TextCompletion:
    """One request to `/v1/completions`. At most `max_running` of its prompts run at the same time."""

    def __init__(self, gateway: Gateway, request: TextCompletionRequest) -> None:
        """Raises GatewayError if the request is wrong, or if its model is unknown or still loads."""
        self._gateway = gateway
        self._request = request
        self._prompts = to_completions(request)
        model = gateway.model(request.model)
        self._tokenizer = model.tokenizer
        self._options = RenderOptions.of(request, model, logprobs=request.logprobs is not None)

    async def answer(self, response: ResponseWriter) -> None:
        """Write the answer. Raises GatewayError."""
        prepared = list(zip(self._prompts, await self._gateway.prepare(*self._prompts), strict=True))
        await (self._stream(prepared, response) if self._request.stream else self._answer_whole(prepared, response))

    async def _answer_whole(self, prepared: list[tuple[CompletionRequest, PreparedRequest]], response: ResponseWriter) -> None:
        usage = Usage()

        async def collect_choices(item: tuple[CompletionRequest, PreparedRequest]) -> list[Parts]:
            async with self._gateway.open_prepared(item[1]) as deltas:
                choices = await collect_text_choices(deltas, self._options, self._tokenizer, self._echo(item[0]))
                usage.add(deltas.usage)
            for choice in choices:
                stack.enter_context(self._gateway.answer_memory.waiting(choice))
            return choices

        with ExitStack() as stack:
            choices_by_prompt = await gather_limited(collect_choices, prepared, self._gateway.settings.max_running)
            choices = [choice for choices_of_prompt in choices_by_prompt for choice in choices_of_prompt]
            await response.parts(200, render_text_completion(choices, usage, self._request.model, self._options), JSON)

    async def _stream(self, prepared: list[tuple[CompletionRequest, PreparedRequest]], response: ResponseWriter) -> None:
        """Stream the choices of all prompts, interleaved as they come.

        The status line is sent when the engine has accepted the first prompt. By then everything has been refused that depends on the
        request alone. A later prompt that fails ends the stream with an error.
        """
        usages: list[Usage] = []
        fields = answer_fields("cmpl", "text_completion", self._request.model, self._options.fingerprint)
        framer = ChunkFramer(fields, usages, self._request.stream_options)
        accepted, started = asyncio.Event(), asyncio.Event()

        async def stream_choices(item: tuple[int, tuple[CompletionRequest, PreparedRequest]]) -> None:
            number, (prompt, prepared) = item
            async with self._gateway.open_prepared(prepared) as deltas:
                usages.append(deltas.usage)
                accepted.set()
                await started.wait()
                renderer = TextChunkRenderer(framer, self._options, first_index=number * self._choices)
                await self._stream_prompt(renderer, prompt, deltas, response)
                await response.deltas(deltas, renderer.render_delta)

        limit = self._gateway.settings.max_running
        streams = asyncio.create_task(gather_limited(stream_choices, enumerate(prepared), limit))
        streams.add_done_callback(lambda _: accepted.set())
        try:
            await accepted.wait()
            if streams.done():
                await streams  # raises the error of the first prompt that was refused
            async with response.events(self._gateway.settings.keep_alive, framer.end):
                started.set()
                await streams
        finally:
            await cancel_and_wait(streams)

    async def _stream_prompt(
        self, renderer: TextChunkRenderer, prompt: CompletionRequest, deltas: DeltaStream, response: ResponseWriter
    ) -> None:
        """Stream the prompt's part of the choices, if the request asks for it."""
        echo = self._echo(prompt)
        if echo or self._options.token_ids:
            await deltas.wait_first_delta(None)  # the prompt's log probabilities come before the first delta
            async for event in renderer.render_prompt(deltas, self._tokenizer, echo, choices=self._choices):
                await response.frames(event)

    @property
    def _choices(self) -> int:
        return self._request.n or 1

    def _echo(self, prompt: CompletionRequest) -> Echo | None:
        """Return the prompt as the answer repeats it. None: the answer does not repeat it."""
        if not self._request.echo:
            return None
        text = prompt.prompt if isinstance(prompt.prompt, str) else self._tokenizer.decode(prompt.prompt)
        return Echo(text, self._request.logprobs)
