"""The weights of the language model, whose vocabulary is enlarged."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from llava_gateway.convert.source import ConvertError, LazyTensor, TensorFiles

EMBEDDINGS, HEAD, NORM = (f"language_model.{name}.weight" for name in ("model.embed_tokens", "lm_head", "model.norm"))
ROWS_MULTIPLE = 64
"""The size of the vocabulary is a multiple of this number, as in `llava-hf` models. Such sizes are faster on GPUs."""


def padded_rows(language: Mapping[str, LazyTensor], tokens: int) -> int:
    """Return the number of rows of the embeddings, enough for the checkpoint's rows and for `tokens` tokens."""
    rows = max(tokens, *(language[name].shape[0] for name in (EMBEDDINGS, HEAD)))
    return -(-rows // ROWS_MULTIPLE) * ROWS_MULTIPLE


def enlarge(language: Mapping[str, LazyTensor], rows: int) -> dict[str, LazyTensor]:
    """Return the weights with `rows` rows in the embeddings and the head.

    A new row is the mean of the others. Its logit is therefore the mean of theirs, and never the largest.
    """
    return {name: _enlarge(tensor, rows) if name in (EMBEDDINGS, HEAD) else tensor for name, tensor in language.items()}


def check(language: Mapping[str, LazyTensor]) -> None:
    """Raise ConvertError if the embeddings, the head or the last norm are missing."""
    for name, dimensions in ((EMBEDDINGS, 2), (HEAD, 2), (NORM, 1)):
        if name not in language or len(language[name].shape) != dimensions:
            raise ConvertError(f"the weight {name.removeprefix('language_model.')} is missing, or has not {dimensions} dimensions")


def _enlarge(tensor: LazyTensor, rows: int) -> LazyTensor:
    """Return a tensor of shape (rows, width) from one of shape (n, width)."""
    present, width = tensor.shape

    def read(files: TensorFiles) -> Tensor:
        weight = tensor.read(files)
        new = weight.mean(0, dtype=torch.float32).to(weight.dtype)
        return torch.cat([weight, new.expand(rows - present, width)])

    return replace(tensor, shape=(rows, width), read=read) if rows > present else tensor
