"""Writes the small files of a checkpoint in the hub's layout: the configurations of the image processor and the tokenizer."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]

PROCESSOR, NEXT_PROCESSOR = "LlavaProcessor", "LlavaNextProcessor"
"""The classes of transformers that prepare texts and images."""


def write_processor(
    directory: Path,
    *,
    side: int,
    patch: int,
    strategy: str,
    image_token: str,
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
    pads: bool = False,
    grids: Sequence[Sequence[int]] = (),
) -> None:
    """Write the configuration of the image processor.

    `side` and `patch`: in pixels. `strategy`: `default` (without the class token) or `full`. `mean` and `std`: of red, green and blue.
    `pads`: images become square by padding instead of cropping. `grids`: height and width of each grid of LLaVA-NeXT, in pixels.
    """
    kind = "LlavaNextImageProcessor" if grids else "LlavaImageProcessor" if pads else "CLIPImageProcessor"
    image_processor = {
        "image_processor_type": kind,
        **({"do_pad": True} if pads or grids else {}),
        **({"image_grid_pinpoints": list(grids)} if grids else {}),
        "do_resize": True, "size": {"shortest_edge": side}, "resample": 3,
        "do_center_crop": True, "crop_size": {"height": side, "width": side},
        "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": list(mean), "image_std": list(std),
        "do_convert_rgb": True,
    }  # fmt: skip
    write_json(directory / "preprocessor_config.json", image_processor)
    write_json(
        directory / "processor_config.json",
        {
            "processor_class": NEXT_PROCESSOR if grids else PROCESSOR,
            "image_token": image_token,
            "patch_size": patch,
            "num_additional_image_tokens": 1,
            "vision_feature_select_strategy": strategy,
        },
    )


def write_tokenizer(
    directory: Path, tokenizer: Tokenizer, special: Mapping[str, str], image_token: str, length: int, processor: str = PROCESSOR
) -> None:
    """Write the tokenizer.

    `special`: the special tokens by name, such as `bos_token`. `length`: the longest text, in tokens. `processor`: the class that uses it.
    """
    tokenizer.save(str(directory / "tokenizer.json"))
    write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "processor_class": processor,
            **special, "image_token": image_token,
            "extra_special_tokens": {"image_token": image_token},
            "clean_up_tokenization_spaces": False,
            "model_max_length": length,
        },
    )  # fmt: skip


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
