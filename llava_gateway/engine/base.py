"""What the gateway asks of an engine. `engine.vllm` is the one that ships, and `engine.supervisor` keeps it alive."""

from collections.abc import Callable
from typing import Protocol

from llava_gateway.types import Delta, LoraAdapter, ModelInfo, Prompt, SamplingParams, StructuredOutput, Usage


class Engine(Protocol):
    """Starts once and stops once; after its death another one is made."""

    stage: str
    """What it is at while it starts, for people."""

    @property
    def dead(self) -> bool:
        """Whether it is known to have died after its start."""

    async def start(self) -> ModelInfo:
        """Load the model. Raises EngineStartError."""

    async def check_structured_output(self, structured_output: StructuredOutput) -> None:
        """Whether answers can be held to this form. Raises InvalidRequest; TooManyRequests or Unavailable if there is no telling now."""

    async def load_adapter(self, adapter: LoraAdapter) -> None:
        """From now on prompts may come with it. Raises InvalidRequest for one that this model cannot take, and lives on without it;
        EngineFailed or Unavailable."""

    async def unload_adapter(self, adapter: LoraAdapter) -> None:
        """Forget it; no prompt that is being answered has it. Raises EngineFailed or Unavailable."""

    async def generate(
        self, prompt: Prompt, sampling: SamplingParams, *, stream: bool, usage: Usage, on_delta: Callable[[Delta], None]
    ) -> None:
        """Answer: gives deltas to `take` as they come, or each choice in as few as suit the engine if not `stream`, and returns when it has
        given all. `take` is called from the event loop and does not block. Writes what it read and wrote into `usage`.

        Cancelling it aborts the request. Raises InvalidRequest before the first delta, EngineFailed or Unavailable at any time.
        """

    async def check(self, timeout: float) -> None:
        """A round trip to the engine's own loop. Raises Unavailable if it is dead or does not answer within `timeout` seconds."""

    async def stop(self) -> None:
        """End the engine and every process it has started, at once; what runs ends with an error. Safe to call at any time, and twice."""
