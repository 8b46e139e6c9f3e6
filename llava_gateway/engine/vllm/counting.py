"""What a request has cost that ends before its answer. vLLM tells the length of an answer that is wanted whole only with it."""

import asyncio
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from llava_gateway.chat import Usage

if TYPE_CHECKING:
    from vllm import RequestOutput
    from vllm.v1.engine.async_llm import AsyncLLM


async def counted(engine: "AsyncLLM", name: str, outputs: "AsyncGenerator[RequestOutput]", usage: Usage) -> "AsyncGenerator[RequestOutput]":
    """The outputs of the request of this name; if it is cancelled, the tokens written by then go into `usage`."""
    while True:
        waiting = asyncio.ensure_future(anext(outputs, None))
        try:
            output = await asyncio.shield(waiting)
        except asyncio.CancelledError:
            usage.completion_tokens += _written(engine, name)  # before vLLM knows, which then forgets the request
            waiting.cancel()
            await asyncio.wait((waiting,))
            raise
        if output is None:
            return
        yield output


def _written(engine: "AsyncLLM", name: str) -> int:
    """Tokens of all its choices: of those that go on, and of those that have ended and wait for the others."""
    processor = engine.output_processor
    states = [processor.request_states[each] for each in processor.external_req_ids.get(name, ()) if each in processor.request_states]
    written: int = sum(state.detokenizer.num_output_tokens() for state in states if state.detokenizer)
    parents = {id(state.parent_req): state.parent_req for state in states if state.parent_req}
    return written + sum(len(choice.token_ids) for parent in parents.values() for choice in parent.output_aggregator if choice)
