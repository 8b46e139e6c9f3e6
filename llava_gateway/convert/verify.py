"""Checks that transformers and vLLM can load the converted checkpoint."""

from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image
from safetensors import safe_open
from transformers import AutoConfig, AutoProcessor, LlavaConfig, LlavaForConditionalGeneration

from llava_gateway.convert.names import hub_name
from llava_gateway.convert.source import ConvertError, weight_files


def check_shapes(config: LlavaConfig, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ConvertError if the weights do not fit the configuration. `shapes`: by the hub's names of the weights."""
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
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
        token_ids = processor(text=prompt, images=Image.new("RGB", (8, 8)))["input_ids"][0]
    except Exception as error:  # transformers, tokenizers and jinja each raise their own classes
        raise ConvertError(f"{directory} does not load: {' '.join(str(error).split())}") from error
    check_shapes(config, stored_shapes(weight_files(directory)))
    if (count := list(token_ids).count(config.image_token_index)) != config.image_seq_length:
        raise ConvertError(f"an image becomes {count} image tokens instead of {config.image_seq_length}")
    if (largest := max(token_ids)) >= config.text_config.vocab_size:
        raise ConvertError(f"the token {largest} is beyond the vocabulary of {config.text_config.vocab_size}")


def stored_shapes(paths: list[Path]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors in safetensors files, by name. Raises SafetensorError for an incomplete file."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in paths:
        with safe_open(path, framework="pt") as file:
            shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return shapes
