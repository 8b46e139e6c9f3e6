"""The language model's weights, where the vocabulary has become larger."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from llava_gateway.convert.source import ConvertError, Files, Lazy

EMBEDDINGS, HEAD, NORM = (f"language_model.{name}.weight" for name in ("model.embed_tokens", "lm_head", "model.norm"))
MULTIPLE = 64
"""The vocabulary's size is a multiple of it, as in `llava-hf` models: GPUs are quicker then."""
SMALLEST_NORM = 0.05
"""Means of LLaMAs' last norms are above 1, and what two of them differ in is thousandths."""


def padded_rows(language: Mapping[str, Lazy], tokens: int) -> int:
    """How many rows there are to be: for all that the checkpoint has, and for so many tokens."""
    rows = max(tokens, *(language[name].shape[0] for name in (EMBEDDINGS, HEAD)))
    return -(-rows // MULTIPLE) * MULTIPLE


def grown(language: Mapping[str, Lazy], rows: int) -> dict[str, Lazy]:
    """With embeddings and head of so many rows. A new row is the mean of the others: so is its logit, which is never the largest then."""
    return {name: _grown(tensor, rows) if name in (EMBEDDINGS, HEAD) else tensor for name, tensor in language.items()}


def check(language: Mapping[str, Lazy], files: Files) -> None:
    """Raises ConvertError where embeddings, head or the last norm are missing, and for the difference between a LLaVA and its LLaMA, as
    LLaVA v0 and v1 were first published."""
    for name, dimensions in ((EMBEDDINGS, 2), (HEAD, 2), (NORM, 1)):
        if name not in language or len(language[name].shape) != dimensions:
            raise ConvertError(f"the weight {name.removeprefix('language_model.')} is missing, or has not {dimensions} dimensions")
    if language[NORM].read(files).float().abs().mean() < SMALLEST_NORM:
        raise ConvertError("these weights are a delta; apply it to its LLaMA with LLaVA's llava.model.apply_delta, and convert the result")


def _grown(tensor: Lazy, rows: int) -> Lazy:
    """(n, width) to (rows, width)."""
    there, width = tensor.shape

    def read(files: Files) -> Tensor:
        weight = tensor.read(files)
        new = weight.mean(0, dtype=torch.float32).to(weight.dtype)
        return torch.cat([weight, new.expand(rows - there, width)])

    return replace(tensor, shape=(rows, width), read=read) if rows > there else tensor
