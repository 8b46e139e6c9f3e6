"""Converts the projector to the form in `llava-hf` models: linear_2(activation(linear_1(x)))."""

from collections.abc import Mapping

import torch
from torch import Tensor

from llava_gateway.convert.source import ConvertError, LazyTensor, TensorFiles

LINEAR = {"weight", "bias"}
MLP = {"0.weight": "linear_1.weight", "0.bias": "linear_1.bias", "2.weight": "linear_2.weight", "2.bias": "linear_2.bias"}


def convert_projector(projector: Mapping[str, LazyTensor]) -> tuple[str, dict[str, LazyTensor]]:
    """Return the name of the activation, and the weights with the hub's names.

    `projector`: the tensors by the rest of their names after `mm_projector.`. Raises ConvertError.
    """
    if set(projector) == set(MLP):
        return "gelu", {f"multi_modal_projector.{MLP[name]}": tensor for name, tensor in projector.items()}
    if set(projector) == LINEAR and len(projector["weight"].shape) == 2:
        two_layers = _two_layers(projector["weight"], projector["bias"])
        return "relu", {f"multi_modal_projector.{name}": tensor for name, tensor in two_layers.items()}
    found = ", ".join(sorted(projector)) or "nothing"
    raise ConvertError(f"the projector is neither linear nor mlp2x_gelu: of model.mm_projector there is {found}")


def _two_layers(weight: LazyTensor, bias: LazyTensor) -> dict[str, LazyTensor]:
    """Return two layers, with `text` hidden units and ReLU between them, that compute W x + b exactly. Shape: W (text, vision).

    Because x = relu(x) - relu(-x), linear_1 is (I, -I, 0) and linear_2 is (W, -W, 0).
    """
    text, vision = weight.shape
    if text < 2 * vision:
        raise ConvertError(f"a linear projector from {vision} to {text} has no form with two layers; that takes {2 * vision} or more")

    def first(files: TensorFiles) -> Tensor:
        one = torch.eye(vision)
        return torch.cat([one, -one, torch.zeros(text - 2 * vision, vision)])

    def second(files: TensorFiles) -> Tensor:
        one = weight.read(files)
        return torch.cat([one, -one, one.new_zeros(text, text - 2 * vision)], 1)

    return {
        "linear_1.weight": LazyTensor((text, vision), first),
        "linear_1.bias": LazyTensor((text,), lambda files: torch.zeros(text)),
        "linear_2.weight": LazyTensor((text, text), second),
        "linear_2.bias": bias,
    }
