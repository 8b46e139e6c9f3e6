"""The data types that all parts share: requests (`ChatRequest`, `CompletionRequest`) and answers (`Delta`, `Usage`).

They belong to no API and to no engine. An API parses its dialect into a request and renders deltas back into its dialect.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image

from llava_gateway.model_info import LoraAdapter
from llava_gateway.settings import AspectRatio

if TYPE_CHECKING:
    import numpy as np

Role = Literal["system", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length", "tool_calls"]
"""`length`: the answer has reached `max_tokens`. `tool_calls`: the answer calls tools. `stop`: every other regular end."""
ToolChoice = Literal["auto", "required", "named"]
"""`auto`: the model may call tools or answer in text. `required`: it calls one or more tools. `named`: it calls the only tool given."""
MODEL_DEFAULTS = (
    *("temperature", "top_p", "top_k", "min_p"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty"),
)
"""The sampling parameters for which a model may have its own defaults, as vLLM has it."""
MIN_LOGPROB = -9999.0
"""OpenAI's value for a token of probability 0, because JSON has no infinity."""
MAX_LOGPROB_TOKEN_IDS = 128
"""vLLM's upper bound of `SamplingParams.logprob_token_ids`."""
StructuredOutputKind = Literal["json", "json_object", "regex", "choice", "grammar"]


@dataclass(frozen=True, slots=True)
class Text:
    """A part of a message that is text."""

    text: str


@dataclass(frozen=True, slots=True)
class BodySlice:
    """A long base64 string or `data:` URI that was not copied out of the request's body.

    The memory view keeps the whole body alive.
    """

    ascii: memoryview
    """The string's bytes, without its quotes."""


@dataclass(frozen=True, slots=True)
class ImageUrl:
    """An image as a `data:` URI or an http(s) URL, as the client sent it. The URL has not been checked."""

    url: str | BodySlice
    param: str
    """The path of the field in the client's request, such as `messages[0].content[1].image_url.url`, for error messages."""


@dataclass(frozen=True, slots=True)
class ImageBase64:
    """An image file in base64, as the client sent it. The string has not been checked; a `data:` URI is accepted, too."""

    base64: str | BodySlice
    param: str
    """The path of the field in the client's request, for error messages."""


@dataclass(frozen=True, slots=True)
class ImageFileId:
    """An image that the client has uploaded before, by the id of its file. The id has not been checked."""

    file_id: str
    param: str
    """The path of the field in the client's request, for error messages."""


ImageSource = ImageUrl | ImageBase64 | ImageFileId
"""An image that has not been fetched or decoded yet."""


@dataclass(frozen=True, slots=True)
class VideoUrl:
    """A video as a `data:` URI or an http(s) URL, as the client sent it. The URL has not been checked."""

    url: str | BodySlice
    param: str
    """The path of the field in the client's request, such as `messages[0].content[1].video_url.url`, for error messages."""


Part = Text | ImageSource | VideoUrl
"""A part of a message."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function of the client that the model may call."""

    name: str
    description: str = ""
    parameters: str = '{"type":"object","properties":{}}'
    """The JSON Schema of the arguments, as JSON text."""
    param: str = "tools"
    """The path of `parameters` in the client's request, for error messages."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool, in an earlier message of the assistant."""

    id: str
    name: str
    arguments: str
    """JSON text: an object, or a string if the model's arguments were not valid JSON."""


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """The next piece of one tool call of an answer."""

    index: int
    """The number of the call within its choice, from 0."""
    arguments: str
    """The next piece of the arguments' JSON text. May be empty."""
    id: str | None = None
    """Set in the first piece of a call, together with `name`."""
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a chat: its role, and its texts, images and videos in order."""

    role: Role
    content: tuple[Part, ...]
    tool_calls: tuple[ToolCall, ...] = ()
    """The calls in a message of the assistant."""
    tool_call_id: str = ""
    """In a message with the role tool: the id of the call that it answers."""
    images_in_place: bool = False
    """Whether images and videos stay between the texts, without a line break. False: the chat template places them, which most templates do
    before all texts; but images with a text between them stay where they are."""


def has_text_before_image(content: Sequence[Part]) -> bool:
    """Return whether a text stands before an image, so that the image's place has a meaning."""
    last = max((index for index, part in enumerate(content) if not isinstance(part, Text)), default=0)
    return any(isinstance(part, Text) and part.text.strip() for part in content[:last])


@dataclass(frozen=True, slots=True)
class StructuredOutput:
    """A constraint on the answer's form. The engine samples no token that would violate it."""

    kind: StructuredOutputKind
    spec: str | tuple[str, ...] = ""
    """json: a JSON Schema as JSON text; regex: the expression; choice: the possible answers; grammar: EBNF or Lark; json_object: empty."""
    param: str = "structured_outputs"
    """The path of the field in the client's request, for error messages."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """The sampling parameters of an answer, with the meanings of vLLM's parameters of these names.

    The API has checked every type and range. The gateway checks the values that depend on the model.
    """

    max_tokens: int | None = None
    """The upper bound of the answer, in tokens. None: the server's default, or the rest of the context if that is less. 0: the answer is
    empty, which is useful with `prompt_logprobs`."""
    lower_max_tokens_to_fit: bool = False
    """Whether a `max_tokens` beyond the rest of the context is lowered to it. False: such a request is refused."""
    min_tokens: int = 0
    n: int = 1
    """The number of choices."""
    temperature: float = 1.0
    """0 means greedy sampling."""
    top_p: float = 1.0
    top_k: int = 0
    """0 turns it off."""
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """By token id."""
    allowed_token_ids: tuple[int, ...] | None = None
    """None: all tokens are allowed."""
    bad_words: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    """Generate until `max_tokens`, past the model's end-of-sequence token. For load tests."""
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    structured_output: StructuredOutput | None = None
    logprobs: int | None = None
    """The number of alternatives beside each sampled token. 0: only the sampled token's log probability. None: no log probabilities."""
    logprob_token_ids: tuple[int, ...] = ()
    """Up to `MAX_LOGPROB_TOKEN_IDS` tokens beside each sampled token, instead of the likeliest ones. `logprobs` is their number. Their log
    probabilities are the model's own: over all tokens, before the temperature. Empty: the likeliest tokens."""
    unset: frozenset[str] = frozenset()
    """The names of parameters that the client left out. The model's defaults (`ModelInfo.default_sampling`) take their place."""
    prompt_logprobs: int | None = None
    """The same for the prompt's tokens."""
    include_stop_token: bool = False
    """Whether the log probabilities include the token that ended the answer, which the text does not show."""
    return_token_ids: bool = False
    """Whether the deltas have the ids of their tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """A request for the assistant's next message.

    This one asks a question about one image:

        question = Message("user", (ImageUrl("https://example.com/cat.jpg", "image"), Text("What is in this image?")))
        ChatRequest(model="llava-demo", messages=(question,), sampling=SamplingParams(max_tokens=64, temperature=0), stream=True)
    """

    model: str
    """The name of a served model, one of its aliases, or a LoRA adapter's name."""
    messages: tuple[Message, ...]
    param: str = "messages"
    """The path of the messages in the client's request, for error messages."""
    template: str | None = None
    """The name of a built-in chat template. None: the template that belongs to the model's name, or the server's."""
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """The values of more variables for the chat template. A variable that the template does not read has no effect."""
    continue_last: bool = False
    """Whether the answer continues the last message, which must be the assistant's, instead of starting a new one."""
    tools: tuple[Tool, ...] = ()
    """The tools that the model may call. Empty: the answer is text."""
    tools_param: str = "tools"
    """The path of the tools in the client's request, for error messages."""
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True
    """Whether one answer may call several tools."""
    image_aspect_ratio: AspectRatio | None = None
    """How images become square. None: as the server's setting says."""
    cache_salt: str | None = None
    """A secret of the client. The engine shares its caches only between prompts of the same salt. None: with all prompts without a salt."""
    sampling: SamplingParams = SamplingParams()
    stream: bool = False
    """Whether each delta is wanted as soon as the engine has it. False: each choice comes in one delta."""

    @property
    def images(self) -> tuple[ImageSource, ...]:
        """The images of all messages, in order."""
        return tuple(part for message in self.messages for part in message.content if isinstance(part, ImageSource))

    @property
    def videos(self) -> tuple[VideoUrl, ...]:
        """The videos of all messages, in order."""
        return tuple(part for message in self.messages for part in message.content if isinstance(part, VideoUrl))

    @property
    def text_length(self) -> int:
        """The number of characters in all texts, in calls, and in the definitions of the tools."""
        texts = sum(len(part.text) for message in self.messages for part in message.content if isinstance(part, Text))
        calls = sum(len(call.arguments) for message in self.messages for call in message.tool_calls)
        return texts + calls + sum(len(tool.description) + len(tool.parameters) for tool in self.tools)

    @property
    def must_call(self) -> bool:
        """Whether the answer must be a call of a tool."""
        return bool(self.tools) and self.tool_choice != "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionRequest:
    """A request for the continuation of a prompt that the client has written out, with its control tokens and image placeholders.

    This one has no image:

        CompletionRequest(model="llava-demo", prompt="USER: Hello! ASSISTANT:")
    """

    model: str
    """The name of a served model, one of its aliases, or a LoRA adapter's name."""
    prompt: str | tuple[int, ...]
    """A text or token ids. Either has one image token per image, and one video token per video."""
    param: str = "prompt"
    """The path of the prompt in the client's request, for error messages."""
    images: tuple[ImageSource, ...] = ()
    videos: tuple[VideoUrl, ...] = ()
    image_aspect_ratio: AspectRatio | None = None
    """How images become square. None: as the server's setting says."""
    add_special_tokens: bool = True
    """Whether the model's `<s>` is put before a text that does not begin with it."""
    cache_salt: str | None = None
    """A secret of the client. The engine shares its caches only between prompts of the same salt. None: with all prompts without a salt."""
    sampling: SamplingParams = SamplingParams()
    stream: bool = False
    """Whether each delta is wanted as soon as the engine has it. False: each choice comes in one delta."""

    @property
    def text_length(self) -> int:
        """The number of characters in the prompt; 0 for token ids."""
        return len(self.prompt) if isinstance(self.prompt, str) else 0


Request = ChatRequest | CompletionRequest


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token of the answer and its log probability."""

    token: bytes
    """In UTF-8. A character may be split into several tokens, so these bytes may be an incomplete character."""
    logprob: float
    """The natural logarithm of the token's probability."""
    top: tuple[tuple[bytes, float], ...] = ()
    """The most likely tokens at this position with their log probabilities, the most likely first; or the tokens that the request names, in
    its order."""
    token_id: int = -1
    top_ids: tuple[int, ...] = ()
    """The token ids of `top`, in the same order."""


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """The log probabilities of a prompt's tokens, for every position of the prompt.

    They are flat lists, because one object for each log probability would keep the garbage collector busy. The entries of a position are
    those from `starts[position]` to `ends[position]`: first the prompt's own token, then the most likely tokens in descending order. The
    first position has no entries.
    """

    starts: list[int]
    ends: list[int]
    token_ids: list[int]
    logprobs: list[float]
    ranks: list[int]
    """The positions of the tokens in the order of their probabilities, from 1."""

    def __len__(self) -> int:
        return len(self.starts)

    def entries(self, position: int, top: int) -> list[tuple[int, float, int]]:
        """Return the token id, log probability and rank of the prompt's token at a position, and of up to `top` likeliest tokens."""
        start = self.starts[position]
        end = min(self.ends[position], start + 1 + top)
        logprobs = (max(logprob, MIN_LOGPROB) for logprob in self.logprobs[start:end])
        return list(zip(self.token_ids[start:end], logprobs, self.ranks[start:end], strict=True))


@dataclass(frozen=True, slots=True)
class Delta:
    """The next piece of one choice of an answer."""

    index: int
    """The number of the choice, from 0 to `n` - 1."""
    text: str
    """Always whole characters. May be empty."""
    tokens: int
    """The number of tokens that the engine generated for this piece. Some tokens show as no text."""
    finish_reason: FinishReason | None = None
    """Set in the last delta of a choice."""
    stopped_by: str | int | None = None
    """The stop string, or the id of the stop token, that ended the choice. None if it ended otherwise."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """One for each token if the request asks for them, without the token that ends the text."""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    """The pieces of tool calls that follow `text`."""
    token_ids: tuple[int, ...] = ()
    """The ids of all `tokens`, if the request asks for them."""
    prompt_logprobs: PromptLogprobs | None = None
    """Set in the first delta of the answer if the request asks for them. This delta has no text and no token."""


@dataclass(slots=True)
class Usage:
    """The tokens of one request, as the engine has counted them so far."""

    prompt_tokens: int = 0
    """Text, image and video tokens together."""
    image_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens that the engine found in its prefix cache."""
    completion_tokens: int = 0
    """Generated tokens of all choices."""
    video_tokens: int = 0

    @property
    def text_tokens(self) -> int:
        """The prompt's tokens that are text."""
        return self.prompt_tokens - self.image_tokens - self.video_tokens

    def add(self, other: "Usage") -> None:
        """Add the tokens of another request to this sum."""
        self.prompt_tokens += other.prompt_tokens
        self.image_tokens += other.image_tokens
        self.video_tokens += other.video_tokens
        self.cached_tokens += other.cached_tokens
        self.completion_tokens += other.completion_tokens


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """An image that has been decoded and resized for the model."""

    pixels: Image.Image
    """RGB: `side` x `side` pixels, or in the image's own aspect ratio if the model has grids."""
    digest: str
    """Identifies the file's bytes and the transform: equal digests mean equal pixels. The engine caches the image under this key."""
    source: tuple[int, int]
    """The width and height of the original image, in pixels."""
    tokens: int
    """The number of context tokens that the image takes."""


@dataclass(frozen=True, slots=True)
class PreparedVideo:
    """The frames of a video that were sampled, decoded and resized for the model."""

    frames: "np.ndarray[Any, np.dtype[np.uint8]]"
    """RGB, in the shape (frames, height, width, 3). Height and width are the `side` of the model's `VideoConfig`."""
    digest: str
    """Identifies the file's bytes, the sampling and the transform: equal digests mean equal frames. The engine caches the video under this
    key."""
    source: tuple[int, int]
    """The width and height of the original video, in pixels."""
    seconds: float
    """The duration of the original video."""
    tokens: int
    """The number of context tokens that the video takes."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """The input of the engine for one request."""

    token_ids: list[int]
    """With one image token per image and one video token per video. The engine expands each to its number of tokens."""
    images: tuple[PreparedImage, ...]
    adapter: LoraAdapter | None = None
    """A loaded adapter. None: the model without an adapter."""
    cache_salt: str | None = None
    """As in the request."""
    videos: tuple[PreparedVideo, ...] = ()
