"""The vision tower. An original checkpoint names it, but usually does not contain it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import CLIPVisionConfig

from llava_gateway.convert.detect import read_config
from llava_gateway.convert.files import CLIP_MEAN, CLIP_STD
from llava_gateway.convert.locate import locate
from llava_gateway.convert.names import clip_vision
from llava_gateway.convert.source import ConvertError, LazyTensor, TensorFiles, tensors, weight_files

FLAG = "--vision-tower"


@dataclass(frozen=True, slots=True)
class Tower:
    """A CLIP vision tower."""

    config: CLIPVisionConfig
    weights: Mapping[str, LazyTensor]
    """The weights, with the hub's names."""
    paths: list[Path] = field(default_factory=list)
    """The files of the weights; empty if the checkpoint contains the weights."""
    mean: list[float] = field(default_factory=lambda: CLIP_MEAN)
    std: list[float] = field(default_factory=lambda: CLIP_STD)
    """The standard deviation of red, green and blue, on a scale from 0 to 1. `mean` has the same order and scale."""


def load_tower(name: str, contained: Mapping[str, LazyTensor], files: TensorFiles) -> Tower:
    """Load the vision tower `name`.

    `contained`: the tower's weights if the checkpoint contains them; then only the configuration is read from `name`. Raises ConvertError.
    """
    if not name:
        raise ConvertError(f"config.json names no mm_vision_tower; give {FLAG}, such as openai/clip-vit-large-patch14-336")
    directory = locate(name, FLAG)
    if read_config(directory).get("model_type") not in ("clip", "clip_vision_model"):
        raise ConvertError(f"{FLAG} {directory} is no CLIP: its config.json must have model_type clip or clip_vision_model")
    try:
        config = CLIPVisionConfig.from_pretrained(directory)
    except (StrictDataclassError, OSError, TypeError, ValueError) as error:
        raise ConvertError(f"{directory}: config.json makes no CLIP: {' '.join(str(error).split())}") from error
    mean_std = _mean_std(directory / "preprocessor_config.json")
    if contained:
        return Tower(config, contained, [], *mean_std)
    paths = weight_files(directory)
    return Tower(config, dict(clip_vision(tensors(paths, files))), paths, *mean_std)


def _mean_std(path: Path) -> tuple[list[float], list[float]]:
    """Return the mean and the standard deviation in preprocessor_config.json, or those of CLIP. Raises ConvertError."""
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
        return found.get("image_mean", CLIP_MEAN), found.get("image_std", CLIP_STD)
    except FileNotFoundError:
        return CLIP_MEAN, CLIP_STD
    except (OSError, ValueError, AttributeError) as error:
        raise ConvertError(f"{path} is no configuration of an image processor: {error}") from error
