"""Translates tensor names between original checkpoints, the hub's `llava-hf` models and transformers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from llava_gateway.convert.source import ConvertError, LazyTensor

LANGUAGE = ("model.layers.", "model.norm.", "model.embed_tokens.", "lm_head.")
PROJECTOR = "model.mm_projector."
VISION = "model.vision_tower.vision_tower."
NEWLINE = "image_newline"
BUFFERS = ("rotary_emb.inv_freq", "embeddings.position_ids")
"""The endings of the names of buffers. They are not weights, but old versions of transformers saved them."""
RENAMED = (  # transformers 5's names to the hub's
    ("lm_head.", "language_model.lm_head."),
    ("model.language_model.", "language_model.model."),
    ("model.vision_tower.", "vision_tower.vision_model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    (f"model.{NEWLINE}", NEWLINE),
)


@dataclass(slots=True)
class Parts:
    """The tensors of an original checkpoint.

    `language` and `vision` have the hub's names. The names in `projector` are the rest of the original name after `mm_projector.`.
    """

    language: dict[str, LazyTensor] = field(default_factory=dict)
    projector: dict[str, LazyTensor] = field(default_factory=dict)
    vision: dict[str, LazyTensor] = field(default_factory=dict)
    newline: dict[str, LazyTensor] = field(default_factory=dict)
    """The embedding after each row of an image's features, which only LLaVA-1.6 has, with the hub's name."""


def split(tensors: Mapping[str, LazyTensor]) -> Parts:
    """Split an original checkpoint's tensors into parts, in their order.

    Raises ConvertError for a tensor that no LLaVA has.
    """
    parts = Parts()
    for name, tensor in tensors.items():
        if name.startswith(LANGUAGE):
            parts.language[f"language_model.{name}"] = tensor
        elif name.startswith(PROJECTOR):
            parts.projector[name.removeprefix(PROJECTOR)] = tensor
        elif name.startswith(VISION):
            parts.vision[f"vision_tower.{name.removeprefix(VISION)}"] = tensor
        elif name == f"model.{NEWLINE}":
            parts.newline[NEWLINE] = tensor
        else:
            raise ConvertError(f"the tensor {name} belongs to no LLaVA on LLaMA or Mistral; those are converted")
    return parts


def without_buffers(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Return the tensors that are weights."""
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(BUFFERS)}


def with_model_names(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Return the tensors saved beside an adapter, or those of a single projector, with the names of a whole model."""
    names = {name: name.removeprefix("base_model.model.") for name in tensors}
    return {f"model.{short}" if short.startswith(("mm_projector.", NEWLINE)) else short: tensors[name] for name, short in names.items()}


def clip_vision(tensors: Mapping[str, LazyTensor]) -> Iterator[tuple[str, LazyTensor]]:
    """Yield the vision tensors of a CLIP, with the hub's names."""
    for name, tensor in tensors.items():
        if name.startswith("vision_model."):
            yield f"vision_tower.{name}", tensor


def hub_name(name: str) -> str:
    """Return the hub's name of a weight of transformers' LLaVA and LLaVA-NeXT. Raises ValueError for any other name."""
    for prefix, hub_prefix in RENAMED:
        if name.startswith(prefix):
            return hub_prefix + name.removeprefix(prefix)
    raise ValueError(f"a weight without a hub name: {name}")
