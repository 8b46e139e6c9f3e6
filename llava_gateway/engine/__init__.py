"""What the gateway asks of an engine. `engine.vllm` is the one that ships, and `engine.supervisor` keeps it alive."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from llava_gateway.chat import Delta, Sampling, Structure, Usage
from llava_gateway.vocabulary import Vocabulary


@dataclass(frozen=True)
class ModelInfo:
    """What an engine knows of its model once it has loaded it."""

    vocabulary: Vocabulary
    chat_template: str
    """Jinja source; empty if the model brings none."""
    special_tokens: dict[str, str]
    """`bos_token`, `eos_token`, ... as templates name them."""
    image_token: str
    """What the chat template writes where an image goes."""
    image_tokens: int
    """How many tokens of the context an image takes: 576 for LLaVA-1.5."""
    image_side: int
    """Pixels of the square that the vision tower sees: 336 for LLaVA-1.5."""
    context_length: int
    """Tokens of prompt and answer together."""


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """An image as the model wants it, and the name that the engine may cache it under."""

    pixels: Image.Image
    """RGB, `image_side` x `image_side`."""
    digest: str
    """Of the file's bytes and of the transform: equal digests mean equal pixels."""
    source: tuple[int, int]
    """Width and height of the file, in pixels."""


@dataclass(frozen=True, slots=True)
class Prompt:
    token_ids: list[int]
    """One image token per image; the engine expands each."""
    images: tuple[PreparedImage, ...]


class Engine(Protocol):
    """Starts once and stops once; after its death another one is made."""

    stage: str
    """What it is at while it starts, for people."""

    @property
    def dead(self) -> bool:
        """Whether it is known to have died after its start."""

    async def start(self) -> ModelInfo:
        """Load the model. Raises EngineStartError."""

    async def check_structure(self, structure: Structure) -> None:
        """Whether answers can be held to this form. Raises InvalidRequest; TooManyRequests or Unavailable if there is no telling now."""

    async def generate(self, prompt: Prompt, sampling: Sampling, *, stream: bool, usage: Usage, take: Callable[[Delta], None]) -> None:
        """Answer: gives deltas to `take` as they come, or each choice whole if not `stream`, and returns when it has given all. `take` is
        called from the event loop and does not block. Writes what it read and wrote into `usage`.

        Cancelling it aborts the request. Raises InvalidRequest before the first delta, EngineFailed or Unavailable at any time.
        """

    async def check(self, timeout: float) -> None:
        """A round trip to the engine's own loop. Raises Unavailable if it is dead or does not answer within `timeout` seconds."""

    async def stop(self) -> None:
        """End the engine and every process it has started, at once; what runs ends with an error. Safe to call at any time, and twice."""


class EngineStartError(Exception):
    """The engine did not start; the message is one line for the operator."""
