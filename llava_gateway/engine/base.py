"""The protocol between the gateway and an engine. `engine.vllm` is the engine that ships; `engine.supervisor` restarts a dead engine."""

from collections.abc import Callable
from typing import Protocol

from llava_gateway.model_info import LoraAdapter, ModelInfo
from llava_gateway.types import Delta, Prompt, SamplingParams, StructuredOutput, Usage


class Engine(Protocol):
    """An engine for one model. It is started once and stopped once; after its death the supervisor creates another one."""

    stage: str
    """The current step of the start, for people: it appears in the log and in the error of requests that come too early."""

    @property
    def dead(self) -> bool:
        """Whether the engine is known to have died after its start."""

    async def start(self) -> ModelInfo:
        """Load the model and return its description. Raises EngineStartError."""

    async def check_structured_output(self, structured_output: StructuredOutput) -> None:
        """Return if the engine can hold an answer to this format.

        Raises InvalidRequest if it cannot, TooManyRequests or Unavailable if the format cannot be checked at the moment.
        """

    async def load_adapter(self, adapter: LoraAdapter) -> None:
        """Load a LoRA adapter, so that prompts may use it.

        Raises InvalidRequest if this model cannot use the adapter (the engine lives on without it), EngineFailed or Unavailable.
        """

    async def unload_adapter(self, adapter: LoraAdapter) -> None:
        """Unload a LoRA adapter that no running prompt uses. Raises EngineFailed or Unavailable."""

    async def generate(
        self,
        prompt: Prompt,
        sampling: SamplingParams,
        *,
        stream: bool,
        usage: Usage,
        on_delta: Callable[[Delta], None],
        on_text: Callable[[str, int], None] | None = None,
    ) -> None:
        """Generate an answer, and return after its last delta. Cancelling the call aborts the request.

        `stream`: True for deltas as they are generated, False for each choice in as few deltas as suit the engine.
        `usage`: the engine adds the tokens of the prompt and of the answer to it.
        `on_delta`: called with each delta, from the event loop. It must not block.
        `on_text`: an engine may call it instead of `on_delta` for a delta of the only choice that has nothing but text. It gets the text
        and the number of its tokens.
        Raises InvalidRequest before the first delta, EngineFailed or Unavailable at any time.
        """

    async def check(self, timeout: float) -> None:
        """Return when the engine's own loop has answered. Raises Unavailable if it is dead or silent for `timeout` seconds."""

    async def stop(self) -> None:
        """End the engine and every process that it has started, at once. Running requests end with an error.

        May be called at any time, and more than once.
        """
