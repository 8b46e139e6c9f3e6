"""The description of a model, which its engine returns, and of a LoRA adapter of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from blake3 import blake3

from llava_gateway.settings import AspectRatio
from llava_gateway.tokenizer import Tokenizer


@dataclass(frozen=True)
class VisionConfig:
    """The form in which a model takes images.

    LLaVA-1.5 takes an image as one square. LLaVA-NeXT and later models keep the aspect ratio: they lay the image out on a grid of such
    squares, and also take a square of the whole image.
    """

    side: int
    """The width and height of the vision tower's square, in pixels: 336 for LLaVA-1.5."""
    tokens: Callable[[int, int], int]
    """Returns the number of context tokens for an image of this width and height, in pixels, as the engine gets it."""
    min_image_tokens: int
    """The lower bound of `tokens`: 576 for LLaVA-1.5, where every image takes 576 tokens."""
    max_image_tokens: int
    """The upper bound of `tokens`."""
    grids: tuple[tuple[int, int], ...] = ()
    """The width and height of each possible grid, in pixels. Empty if an image becomes one square."""
    aspect_ratio: AspectRatio = "crop"
    """How the model's own processor makes an image square."""
    mean_color: tuple[int, int, int] = (122, 116, 104)
    """The RGB color that pads an image."""

    @cached_property
    def digest(self) -> str:
        """Return 16 hexadecimal digits. Models with equal digests get equal pixels from equal images."""
        return blake3(repr(self).encode()).hexdigest(8)


@dataclass(frozen=True)
class VideoConfig:
    """The form in which a model takes videos: a number of frames, each of which becomes one square."""

    side: int
    """The width and height of a frame as the model sees it, in pixels: 384 for LLaVA-OneVision."""
    aspect_ratio: AspectRatio
    """How a frame becomes square: `resize` for LLaVA-OneVision, `crop` for LLaVA-NeXT-Video."""
    tokens: Callable[[int], int]
    """Returns the number of context tokens for a video of this number of frames."""
    max_frames: int
    """The upper bound of the frames of one video that the server samples."""
    max_videos: int | None = None
    """The upper bound of the videos of one request. None: only the context is a bound."""

    @cached_property
    def digest(self) -> str:
        """Return 16 hexadecimal digits. Models with equal digests get equal frames from equal videos."""
        return blake3(repr(self).encode()).hexdigest(8)


@dataclass(frozen=True)
class ModelInfo:
    """The description of a model, which its engine returns once it has loaded the model."""

    tokenizer: Tokenizer
    chat_template: str
    """The Jinja source of the model's chat template; empty if the checkpoint has none."""
    special_tokens: dict[str, str]
    """By the names that chat templates use: `bos_token`, `eos_token` and others."""
    image_token: str
    """The placeholder that the chat template writes for an image, such as `<image>`."""
    vision: VisionConfig
    context_length: int
    """The upper bound of prompt and answer together, in tokens."""
    max_images: int | None = None
    """The upper bound of images in a request, of vLLM's --limit-mm-per-prompt. None: only the context is a bound."""
    image_start_end: bool | None = None
    """Whether training put `<im_start>` and `<im_end>` around each image: `mm_use_im_start_end` of config.json. None: the checkpoint does
    not say."""
    default_sampling: Mapping[str, float] = field(default_factory=dict)
    """The model's own values of `SamplingParams` by name, such as `temperature`, for parameters that a request does not set. `max_tokens`
    is the answer's length for a request that sets none."""
    max_answer_tokens: int | None = None
    """The upper bound of every answer, in tokens. A larger `max_tokens` is lowered to it. None: only the context is a bound."""
    fingerprint: str = ""
    """Identifies the versions, the model and the engine's configuration. It changes if the answers may change. Empty: unknown."""
    takes_images: bool = True
    """False for LLaVA-NeXT-Video, which vLLM serves with videos only."""
    video: VideoConfig | None = None
    """None: the model takes no videos."""
    video_token: str = ""
    """The placeholder that the chat template writes for a video, such as `<video>`. Empty if the model takes no videos."""


@dataclass(frozen=True, slots=True)
class LoraAdapter:
    """A LoRA adapter: small changes to the model's weights, applied to the prompts that name the adapter."""

    name: str
    """The name that clients use as a model's name."""
    path: str
    """The absolute path of the adapter's directory, in the format of the peft library."""
    number: int
    """Counts loadings, from 1. An adapter loaded later under the same name has another number, so that no cached result of the first is
    used for it."""
