"""Applies deltas. The first LLaVAs were published as the difference between their weights and those of the LLaMA they were tuned from.

The rule is that of LLaVA's `llava/model/apply_delta.py`, in half precision: each weight is the sum of the delta's and the base's. The
projector is the delta's alone. A delta may have more tokens than its base.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from llava_gateway.convert.names import PROJECTOR
from llava_gateway.convert.source import ConvertError, LazyTensor, TensorFiles

NORM = "model.norm.weight"
LONGER = ("model.embed_tokens.weight", "lm_head.weight")
"""The weights with a row per token."""
MIN_NORM = 0.05
"""The mean of the last norm of a LLaMA is above 1. The mean of a difference between two models is a few thousandths."""


def is_delta(weights: Mapping[str, LazyTensor], files: TensorFiles) -> bool:
    """Return whether weights, by LLaVA's names, are a delta. Its last norm is nearly zero. Raises ConvertError."""
    return NORM in weights and bool(weights[NORM].read(files).float().abs().mean() < MIN_NORM)


def apply(delta: Mapping[str, LazyTensor], base: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Return the weights of the LLaVA. The names are LLaVA's, without those of buffers. Raises ConvertError."""
    result = {}
    for name, tensor in delta.items():
        if name.startswith(PROJECTOR):
            result[name] = tensor
        elif name not in base:
            raise ConvertError(f"the delta has {name}, which the base does not have; is it the LLaMA that the delta is for?")
        elif tensor.shape == base[name].shape or (name in LONGER and _is_longer(tensor, base[name])):
            result[name] = _sum(tensor, base[name])
        else:
            raise ConvertError(f"{name} is {list(base[name].shape)} in the base, and {list(tensor.shape)} in the delta")
    return result


def _is_longer(delta: LazyTensor, base: LazyTensor) -> bool:
    return len(delta.shape) == len(base.shape) == 2 and delta.shape[0] > base.shape[0] and delta.shape[1] == base.shape[1]


def _sum(delta: LazyTensor, base: LazyTensor) -> LazyTensor:
    def read(files: TensorFiles) -> Tensor:
        total = delta.read(files).to(torch.float16, copy=True)
        total[: base.shape[0]] += base.read(files).half()
        return total

    return replace(delta, read=read)
