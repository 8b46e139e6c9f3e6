"""The words that every part shares: what is asked (`ChatRequest`) and what comes back (`Delta`, `Usage`). No dialect, no engine."""

from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Text:
    text: str


@dataclass(frozen=True, slots=True)
class ImageUrl:
    """An image as the client gave it: a `data:` URI or an http(s) URL, not yet checked."""

    url: str
    param: str
    """Where it stands in the client's request, for error messages."""


@dataclass(frozen=True, slots=True)
class Message:
    role: Role
    content: tuple[Text | ImageUrl, ...]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the answer is drawn. The door has checked every type and range."""

    max_tokens: int | None = None
    """None: the server's default, or what is left of the context if that is less."""
    temperature: float = 1.0
    top_p: float = 1.0
    n: int = 1
    stop: tuple[str, ...] = ()
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    ignore_eos: bool = False
    """Go on to `max_tokens` whatever the model says, for load tests."""


@dataclass(frozen=True, slots=True)
class ChatRequest:
    model: str
    messages: tuple[Message, ...]
    sampling: Sampling = Sampling()
    stream: bool = False
    """Whether deltas are wanted as they come, or each choice whole."""


@dataclass(frozen=True, slots=True)
class Delta:
    """The next piece of one choice."""

    index: int
    text: str
    tokens: int
    """How many tokens the piece has taken; some tokens show as no text."""
    finish_reason: FinishReason | None = None


@dataclass(slots=True)
class Usage:
    """Tokens of one request: what the engine read and wrote."""

    prompt_tokens: int = 0
    """Text and image tokens together."""
    image_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens that the engine found in its prefix cache."""
    completion_tokens: int = 0
