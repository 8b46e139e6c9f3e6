"""The endpoint `/v1/completions`: one or several prompts, answered whole or as one stream."""

import asyncio
from contextlib import ExitStack

from llava_gateway.api.openai.completion_request import TextCompletionRequest, to_completions
from llava_gateway.api.openai.completion_response import Echo, TextChunkRenderer, collect_text_choices, render_text_completion
from llava_gateway.api.openai.streaming import ChunkFramer, RenderOptions, answer_fields
from llava_gateway.concurrency import cancel_and_wait, gather_limited
from llava_gateway.http.response import JSON, Parts, ResponseWriter
from llava_gateway.serving.gateway import Gateway
from llava_gateway.serving.prepare import PreparedRequest
from llava_gateway.types import CompletionRequest, Usage


class TextCompletion:
    """One request to `/v1/completions`. At most `max_running` of its prompts run at the same time."""

    def __init__(self, gateway: Gateway, request: TextCompletionRequest) -> None:
        self._gateway = gateway
        self._request = request

    async def answer(self, response: ResponseWriter) -> None:
        """Write the answer. Raises GatewayError."""
        request = self._request
        prepared = await self._gateway.prepare(*to_completions(request))
        options = RenderOptions.of(request, prepared[0].model, logprobs=request.logprobs is not None)
        await (self._stream(prepared, options, response) if request.stream else self._answer_whole(prepared, options, response))

    async def _answer_whole(self, prepared: list[PreparedRequest], options: RenderOptions, response: ResponseWriter) -> None:
        usage = Usage()

        async def collect_choices(prepared: PreparedRequest) -> list[Parts]:
            async with self._gateway.open_prepared(prepared) as deltas:
                choices = await collect_text_choices(deltas, options, self._echo(prepared))
                usage.add(deltas.usage)
            for choice in choices:
                stack.enter_context(self._gateway.answer_memory.waiting(choice))
            return choices

        with ExitStack() as stack:
            choices_by_prompt = await gather_limited(collect_choices, prepared, self._gateway.settings.max_running)
            choices = [choice for choices_of_prompt in choices_by_prompt for choice in choices_of_prompt]
            await response.parts(200, render_text_completion(choices, usage, self._request.model, options), JSON)

    async def _stream(self, prepared: list[PreparedRequest], options: RenderOptions, response: ResponseWriter) -> None:
        """Stream the choices of all prompts, interleaved as they come.

        The status line is sent when the engine has accepted the first prompt. By then everything has been refused that depends on the
        request alone. A later prompt that fails ends the stream with an error.
        """
        usages: list[Usage] = []
        fields = answer_fields("cmpl", "text_completion", self._request.model, options.fingerprint)
        framer = ChunkFramer(fields, usages, self._request.stream_options)
        accepted, started = asyncio.Event(), asyncio.Event()

        async def stream_choices(numbered: tuple[int, PreparedRequest]) -> None:
            number, prepared = numbered
            async with self._gateway.open_prepared(prepared) as deltas:
                usages.append(deltas.usage)
                accepted.set()
                await started.wait()
                renderer = TextChunkRenderer(framer, options, first_index=number * self._choices)
                echo = self._echo(prepared)
                if echo or options.token_ids:
                    await deltas.wait_first_delta(None)  # the prompt's log probabilities come before the first delta
                    async for event in renderer.render_prompt(deltas, echo, choices=self._choices):
                        await response.frames(event)
                await response.deltas(deltas, renderer.render_delta, renderer.text_frame)

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

    @property
    def _choices(self) -> int:
        return self._request.n or 1

    def _echo(self, prepared: PreparedRequest) -> Echo | None:
        """Return the prompt as the answer repeats it. None: the answer does not repeat it."""
        if not self._request.echo:
            return None
        assert isinstance(prepared.request, CompletionRequest)
        prompt = prepared.request.prompt
        text = prompt if isinstance(prompt, str) else prepared.model.tokenizer.decode(prompt)
        return Echo(text, self._request.logprobs)
