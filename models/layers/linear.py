"""Linear layers with the activation after them."""
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.onednn import fusable

MANY = 2**18  # numbers in a result: below, a fused kernel costs more to start than it saves
# Activations as oneDNN knows them: name and kind.
KNOWN: dict[Callable[[Tensor], Tensor] | None, tuple[str, str]] = {
    None: ("none", ""), F.relu: ("relu", ""), F.gelu: ("gelu", "none")}


class Linear(nn.Linear):
    """activation(linear(x)), [..., in_features] to [..., out_features]; without one, as nn.Linear. In detection on a
    CPU it is one kernel, which does not go over the result again for bias and activation."""

    def __init__(self, in_features: int, out_features: int, activation: Callable[[Tensor], Tensor] | None = None):
        super().__init__(in_features, out_features)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        if self.activation in KNOWN and fusable(x) and x.numel() // self.in_features * self.out_features >= MANY:
            name, kind = KNOWN[self.activation]
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, name, [], kind)
        result = super().forward(x)
        return result if self.activation is None else self.activation(result)
