"""The words that every part shares: what is asked (`ChatRequest`, `CompletionRequest`) and what comes back (`Delta`, `Usage`).

No dialect, no engine.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from blake3 import blake3
from PIL import Image

from llava_gateway.settings import AspectRatio
from llava_gateway.tokenizer import Tokenizer

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length"]
StructuredOutputKind = Literal["json", "json_object", "regex", "choice", "grammar"]


@dataclass(frozen=True, slots=True)
class Text:
    text: str


@dataclass(frozen=True, slots=True)
class BodySlice:
    """A long string of base64, or a `data:` URI, left where it stands in the request's body."""

    ascii: memoryview


@dataclass(frozen=True, slots=True)
class ImageUrl:
    """An image as the client gave it: a `data:` URI or an http(s) URL, not yet checked."""

    url: str | BodySlice
    param: str
    """Where it stands in the client's request, for error messages."""


@dataclass(frozen=True, slots=True)
class ImageBase64:
    """An image's file in base64, not yet checked. (A `data:` URI is forgiven.)"""

    base64: str | BodySlice
    param: str


ImageSource = ImageUrl | ImageBase64


@dataclass(frozen=True, slots=True)
class Message:
    role: Role
    content: tuple[Text | ImageSource, ...]


@dataclass(frozen=True, slots=True)
class StructuredOutput:
    """A form that the answer must have. The engine draws no token that would break it."""

    kind: StructuredOutputKind
    spec: str | tuple[str, ...] = ""
    """json: a JSON Schema, as JSON; choice: the answers to choose from; grammar: EBNF or Lark."""
    param: str = "structured_outputs"
    """Where it stands in the client's request, for error messages."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the answer is drawn. The door has checked every type and range; what depends on the model is checked by the gateway."""

    max_tokens: int | None = None
    """None: the server's default, or what is left of the context if that is less."""
    lower_max_tokens_to_fit: bool = False
    """Whether `max_tokens` is lowered to the tokens that the prompt leaves of the context. False: the request is refused then."""
    min_tokens: int = 0
    n: int = 1
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 is off."""
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    allowed_token_ids: tuple[int, ...] | None = None
    bad_words: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    """Go on to `max_tokens` whatever the model says, for load tests."""
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    structured_output: StructuredOutput | None = None
    logprobs: int | None = None
    """How many alternatives to name beside each token drawn; None: no log probabilities at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    model: str
    messages: tuple[Message, ...]
    param: str = "messages"
    """Where they stand in the client's request, for error messages."""
    template: str | None = None
    """Name of a built-in template; None: the one of the model's name, or the server's."""
    continue_last: bool = False
    """Go on with the last message, the assistant's, instead of beginning a new one."""
    image_aspect_ratio: AspectRatio | None = None
    """How its images become square; None: as the server does it."""
    sampling: SamplingParams = SamplingParams()
    stream: bool = False
    """Whether deltas are wanted as they come, or each choice whole."""

    @property
    def images(self) -> tuple[ImageSource, ...]:
        return tuple(part for message in self.messages for part in message.content if not isinstance(part, Text))

    @property
    def text_length(self) -> int:
        """Characters of its texts."""
        return sum(len(part.text) for message in self.messages for part in message.content if isinstance(part, Text))


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionRequest:
    """A prompt that the client has written out itself, control tokens and image placeholders among it."""

    model: str
    prompt: str | tuple[int, ...]
    """Text, or token ids; one image token per image."""
    param: str = "prompt"
    """Where it stands in the client's request, for error messages."""
    images: tuple[ImageSource, ...] = ()
    image_aspect_ratio: AspectRatio | None = None
    add_special_tokens: bool = True
    """Whether a text begins with the model's `<s>` even if it does not spell it."""
    sampling: SamplingParams = SamplingParams()
    stream: bool = False

    @property
    def text_length(self) -> int:
        """Characters of its prompt; none of one in token ids."""
        return len(self.prompt) if isinstance(self.prompt, str) else 0


Request = ChatRequest | CompletionRequest


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token of the answer as bytes of UTF-8 (a character may take several tokens), and the natural logarithm of its probability."""

    token: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...] = ()
    """The likeliest tokens in this place, likeliest first."""


@dataclass(frozen=True, slots=True)
class Delta:
    """The next piece of one choice."""

    index: int
    text: str
    """Whole characters, always."""
    tokens: int
    """How many tokens the piece has taken; some tokens show as no text."""
    finish_reason: FinishReason | None = None
    stopped_by: str | int | None = None
    """The stop string, or the id of the stop token, that ended it; None if the model came to its end."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """One for each token, if asked for; the token that ends the text has none."""


@dataclass(slots=True)
class Usage:
    """Tokens of one request: what the engine read and wrote."""

    prompt_tokens: int = 0
    """Text and image tokens together."""
    image_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens that the engine found in its prefix cache."""
    completion_tokens: int = 0

    def add(self, other: "Usage") -> None:
        self.prompt_tokens += other.prompt_tokens
        self.image_tokens += other.image_tokens
        self.cached_tokens += other.cached_tokens
        self.completion_tokens += other.completion_tokens


@dataclass(frozen=True)
class VisionConfig:
    """How a model sees pictures: as one square, or in their own shape, laid out on a grid of such squares, beside one of the whole."""

    side: int
    """Pixels of the square that the vision tower sees: 336 for LLaVA-1.5."""
    tokens: Callable[[int, int], int]
    """How many tokens of the context a picture takes that the engine is given with this width and height."""
    min_image_tokens: int
    """That no picture is below: 576 for LLaVA-1.5, whose pictures all take as many."""
    max_image_tokens: int
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

    tokenizer: Tokenizer
    chat_template: str
    """Jinja source; empty if the model brings none."""
    special_tokens: dict[str, str]
    """`bos_token`, `eos_token`, ... as templates name them."""
    image_token: str
    """What the chat template writes where an image goes."""
    vision: VisionConfig
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
class LoraAdapter:
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
    adapter: LoraAdapter | None = None
    """One that is loaded, or the model as it is."""
