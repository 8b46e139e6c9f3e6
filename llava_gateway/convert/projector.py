"""The original's projector as the one that `llava-hf` models have: linear_2(act(linear_1(x)))."""

from collections.abc import Mapping

import torch
from torch import Tensor

from llava_gateway.convert.source import ConvertError, Files, Lazy

LINEAR = {"weight", "bias"}
MLP = {"0.weight": "linear_1.weight", "0.bias": "linear_1.bias", "2.weight": "linear_2.weight", "2.bias": "linear_2.bias"}


def converted(projector: Mapping[str, Lazy]) -> tuple[str, dict[str, Lazy]]:
    """The activation's name, and the weights by the hub's names, of a projector by what follows `mm_projector.`. Raises ConvertError."""
    if set(projector) == set(MLP):
        return "gelu", {f"multi_modal_projector.{MLP[name]}": tensor for name, tensor in projector.items()}
    if set(projector) == LINEAR and len(projector["weight"].shape) == 2:
        two_layers = _two_layers(projector["weight"], projector["bias"])
        return "relu", {f"multi_modal_projector.{name}": tensor for name, tensor in two_layers.items()}
    found = ", ".join(sorted(projector)) or "nothing"
    raise ConvertError(f"the projector is neither linear nor mlp2x_gelu: of model.mm_projector there is {found}")


def _two_layers(weight: Lazy, bias: Lazy) -> dict[str, Lazy]:
    """W x + b (W: (text, vision)) with a layer of `text` units between, exactly: x is relu(x) - relu(-x), so linear_1 is (I, -I, 0) and
    linear_2 (W, -W, 0)."""
    text, vision = weight.shape
    if text < 2 * vision:
        raise ConvertError(f"a linear projector from {vision} to {text} has no form with two layers; that takes {2 * vision} or more")

    def first(files: Files) -> Tensor:
        one = torch.eye(vision)
        return torch.cat([one, -one, torch.zeros(text - 2 * vision, vision)])

    def second(files: Files) -> Tensor:
        one = weight.read(files)
        return torch.cat([one, -one, one.new_zeros(text, text - 2 * vision)], 1)

    return {
        "linear_1.weight": Lazy((text, vision), first),
        "linear_1.bias": Lazy((text,), lambda files: torch.zeros(text)),
        "linear_2.weight": Lazy((text, text), second),
        "linear_2.bias": bias,
    }
