"""What a tensor is called: in an original checkpoint, in the hub's `llava-hf` models, and in transformers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from llava_gateway.convert.source import ConvertError, Lazy

LANGUAGE = ("model.layers.", "model.norm.", "model.embed_tokens.", "lm_head.")
PROJECTOR = "model.mm_projector."
VISION = "model.vision_tower.vision_tower."
BUFFERS = ("rotary_emb.inv_freq", "embeddings.position_ids")
"""Ends of names of what is no weight: old versions of transformers saved it."""
RENAMED = (  # transformers 5's names to the hub's
    ("lm_head.", "language_model.lm_head."),
    ("model.language_model.", "language_model.model."),
    ("model.vision_tower.", "vision_tower.vision_model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
)


@dataclass(slots=True)
class Parts:
    """An original checkpoint's tensors: `language` and `vision` with the hub's names, `projector` with what follows mm_projector."""

    language: dict[str, Lazy] = field(default_factory=dict)
    projector: dict[str, Lazy] = field(default_factory=dict)
    vision: dict[str, Lazy] = field(default_factory=dict)


def divide(tensors: Mapping[str, Lazy]) -> Parts:
    """By an original checkpoint's names, in its order. Raises ConvertError for a tensor that has no place in LLaVA v1 and v1.5."""
    parts = Parts()
    for name, tensor in tensors.items():
        if name.startswith(LANGUAGE):
            parts.language[f"language_model.{name}"] = tensor
        elif name.startswith(PROJECTOR):
            parts.projector[name.removeprefix(PROJECTOR)] = tensor
        elif name.startswith(VISION):
            parts.vision[f"vision_tower.{name.removeprefix(VISION)}"] = tensor
        elif name == "model.image_newline":
            raise ConvertError("this is a LLaVA-1.6 checkpoint (it has model.image_newline); LLaVA v1 and v1.5 are converted")
        else:
            raise ConvertError(f"the tensor {name} belongs to no LLaVA v1 or v1.5 on LLaMA; those are converted")
    return parts


def without_buffers(tensors: Mapping[str, Lazy]) -> dict[str, Lazy]:
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(BUFFERS)}


def adapted(tensors: Mapping[str, Lazy]) -> dict[str, Lazy]:
    """What is beside an adapter or is a projector alone, by the whole model's names."""
    names = {name: name.removeprefix("base_model.model.") for name in tensors}
    return {f"model.{short}" if short.startswith("mm_projector.") else short: tensors[name] for name, short in names.items()}


def clip_vision(tensors: Mapping[str, Lazy]) -> Iterator[tuple[str, Lazy]]:
    """The vision half of a CLIP, with the hub's names."""
    for name, tensor in tensors.items():
        if name.startswith("vision_model."):
            yield f"vision_tower.{name}", tensor


def hub_name(name: str) -> str:
    """Of a weight of transformers' LlavaForConditionalGeneration. Raises ValueError for any other."""
    for ours, hub in RENAMED:
        if name.startswith(ours):
            return hub + name.removeprefix(ours)
    raise ValueError(f"a weight without a hub name: {name}")
