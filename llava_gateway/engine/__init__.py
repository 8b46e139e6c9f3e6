"""What the gateway asks of an engine. `engine.vllm` is the one that ships, and `engine.supervisor` keeps it alive."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from blake3 import blake3
from PIL import Image

from llava_gateway.chat import Delta, Sampling, Structure, Usage
from llava_gateway.settings import AspectRatio
from llava_gateway.vocabulary import Vocabulary


@dataclass(frozen=True)
class Vision:
    """How a model sees pictures: as one square, or in their own shape, laid out on a grid of such squares, beside one of the whole."""

    side: int
    """Pixels of the square that the vision tower sees: 336 for LLaVA-1.5."""
    tokens: Callable[[int, int], int]
    """How many tokens of the context a picture takes that the engine is given with this width and height."""
    fewest: int
    """That no picture is below: 576 for LLaVA-1.5, whose pictures all take as many."""
    most: int
    """That a picture may come to."""
    grids: tuple[tuple[int, int], ...] = ()
    """Width and height of each grid that a picture may be laid out on, in pixels; none if it becomes one square."""
    aspect_ratio: AspectRatio = "crop"
    """How the model's own processor makes a picture square."""
    mean_color: tuple[int, int, int] = (122, 116, 104)
    """What a picture is padded with."""

    @cached_property
    def digest(self) -> str:
        """Equal digests mean that pictures become the same for both."""
        return blake3(repr(self).encode()).hexdigest(8)


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
    vision: Vision
    context_length: int
    """Tokens of prompt and answer together."""


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """An image as the model wants it, and the name that the engine may cache it under."""

    pixels: Image.Image
    """RGB: `side` x `side`, or in the picture's own shape if the model has grids."""
    digest: str
    """Of the file's bytes and of the transform: equal digests mean equal pixels."""
    source: tuple[int, int]
    """Width and height of the file, in pixels."""
    tokens: int
    """How many of the context it takes."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA: small changes to the model, for the prompts that come with it."""

    name: str
    """What clients ask for."""
    path: str
    """Its directory, absolute, as peft writes it."""
    number: int
    """Of this loading, from 1. What is loaded later under the same name is another adapter, with answers of its own."""


@dataclass(frozen=True, slots=True)
class Prompt:
    token_ids: list[int]
    """One image token per image; the engine expands each."""
    images: tuple[PreparedImage, ...]
    adapter: Adapter | None = None
    """One that is loaded, or the model as it is."""


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

    async def load_adapter(self, adapter: Adapter) -> None:
        """From now on prompts may come with it. Raises InvalidRequest for one that this model cannot take, and lives on without it;
        EngineFailed or Unavailable."""

    async def unload_adapter(self, adapter: Adapter) -> None:
        """Forget it; no prompt that is being answered has it. Raises EngineFailed or Unavailable."""

    async def generate(self, prompt: Prompt, sampling: Sampling, *, stream: bool, usage: Usage, take: Callable[[Delta], None]) -> None:
        """Answer: gives deltas to `take` as they come, or each choice in as few as suit the engine if not `stream`, and returns when it has
        given all. `take` is called from the event loop and does not block. Writes what it read and wrote into `usage`.

        Cancelling it aborts the request. Raises InvalidRequest before the first delta, EngineFailed or Unavailable at any time.
        """

    async def check(self, timeout: float) -> None:
        """A round trip to the engine's own loop. Raises Unavailable if it is dead or does not answer within `timeout` seconds."""

    async def stop(self) -> None:
        """End the engine and every process it has started, at once; what runs ends with an error. Safe to call at any time, and twice."""


class EngineStartError(Exception):
    """The engine did not start; the message is one line for the operator."""
