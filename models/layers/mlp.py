"""Multi-layer perceptron of the box heads."""
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.linear import Linear


class MLP(nn.Module):
    """`num_layers` linear layers with ReLU between them: [..., in_dim] to [..., out_dim]."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, num_layers: int):
        super().__init__()
        dims = [in_dim] + [hidden_dim] * (num_layers - 1) + [out_dim]
        activations = [F.relu] * (num_layers - 1) + [None]
        self.layers = nn.ModuleList(map(Linear, dims, dims[1:], activations))

    @property
    def output(self) -> nn.Linear:
        """The last layer."""
        return cast(nn.Linear, self.layers[-1])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x
