"""Checks that transformers and vLLM can load the converted checkpoint."""

from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, LlavaConfig, LlavaNextConfig

from llava_gateway.convert.names import hub_name
from llava_gateway.convert.source import ConvertError, weight_files
from llava_gateway.images.geometry import ImageTokens

SIZE = (8, 6)
"""The width and height of the image that is encoded, in pixels."""


def check_shapes(config: LlavaConfig | LlavaNextConfig, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ConvertError if the weights do not fit the configuration. `shapes`: by the hub's names of the weights."""
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    expected = {hub_name(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if missing := [name for name in expected if name not in shapes]:
        raise ConvertError(f"{len(missing)} weights are missing, the first is {missing[0]}")
    for name, shape in shapes.items():
        if name not in expected:
            raise ConvertError(f"{name} has no place in the model that config.json describes")
        if shape != expected[name]:
            raise ConvertError(f"{name} is {list(shape)}, and config.json makes it {list(expected[name])}")


def check_directory(directory: Path) -> None:
    """Load the checkpoint without the values of its weights, and encode a prompt with an image. Raises ConvertError."""
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Describe this image."}]}]
    try:
        config = AutoConfig.from_pretrained(directory)
        processor = AutoProcessor.from_pretrained(directory)
        prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
        token_ids = processor(text=prompt, images=Image.new("RGB", SIZE))["input_ids"][0]
    except Exception as error:  # transformers, tokenizers and jinja each raise their own classes
        raise ConvertError(f"{directory} does not load: {' '.join(str(error).split())}") from error
    check_shapes(config, stored_shapes(weight_files(directory)))
    if (count := list(token_ids).count(config.image_token_index)) != (expected := _image_tokens(config)):
        raise ConvertError(f"an image becomes {count} image tokens instead of {expected}")
    if (largest := max(token_ids)) >= config.text_config.vocab_size:
        raise ConvertError(f"the token {largest} is beyond the vocabulary of {config.text_config.vocab_size}")


def _image_tokens(config: LlavaConfig | LlavaNextConfig) -> int:
    """Return the number of tokens of an image of SIZE."""
    side, patches = config.vision_config.image_size, config.vision_config.image_size // config.vision_config.patch_size
    grids = tuple((width, height) for height, width in getattr(config, "image_grid_pinpoints", ()))
    return ImageTokens(config.image_seq_length, side, patches, grids)(*SIZE)


def stored_shapes(paths: list[Path]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors in safetensors files, by name. Raises SafetensorError for an incomplete file."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in paths:
        with safe_open(path, framework="pt") as file:
            shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return shapes
