"""The deformable encoder (Deformable DETR, section 4.2): every layer updates the tokens of all levels.

B batch, N tokens of all levels, Q tokens that a layer updates, C channels, L levels.
"""
from collections.abc import Callable

import torch
from torch import Tensor, nn

from models.layers.recompute import recomputed
from models.structures import FlatFeatures


class DeformableEncoderLayer(nn.Module):
    """Deformable attention and feed-forward, each followed by its residual norm."""

    def __init__(self, self_attn: nn.Module, dim: int, dim_feedforward: int, dropout: float,
                 activation: Callable[[Tensor], Tensor]):
        super().__init__()
        self.self_attn = self_attn
        self.norm1 = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.activation = activation

    def forward(self, tokens: Tensor, pos: Tensor, reference: Tensor, memory: Tensor,
                features: FlatFeatures, num_low: int = 0) -> Tensor:
        """Updates tokens [B, Q, C], with pos [B, Q, C] and reference points [B, Q, L, 2], from memory [B, N, C].

        `num_low` counts the tokens of low-level maps among them, which come first.
        """
        tokens = self._attend(tokens, pos, reference, memory, features)
        return self._feed_forward(tokens)

    def _attend(self, tokens: Tensor, pos: Tensor, reference: Tensor, memory: Tensor, features: FlatFeatures) -> Tensor:
        attended = self.self_attn(tokens + pos, reference, memory, features.shapes, features.padding)
        return self.norm1(tokens + self.dropout(attended))

    def _feed_forward(self, tokens: Tensor) -> Tensor:
        hidden = self.dropout(self.activation(self.linear1(tokens)))
        return self.norm2(tokens + self.dropout(self.linear2(hidden)))


class DeformableEncoder(nn.Module):
    """`layers` in turn over all tokens; with `use_checkpoint`, activations are recomputed in the backward pass."""

    def __init__(self, layers: list[nn.Module], use_checkpoint: bool = False):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.use_checkpoint = use_checkpoint

    def start(self, layer: int, features: FlatFeatures) -> int:
        """Index of the first token that a layer updates."""
        return 0

    def num_low(self, features: FlatFeatures) -> int:
        """How many tokens belong to the low-level maps."""
        return 0

    def forward(self, features: FlatFeatures) -> FlatFeatures:
        """features with the tokens [B, N, C] updated."""
        tokens, reference = features.tokens, features.reference_points()
        num_low = self.num_low(features)
        for i, layer in enumerate(self.layers):
            start = self.start(i, features)
            args = (tokens[:, start:], features.pos[:, start:], reference[:, start:], tokens, features,
                    max(num_low - start, 0))
            updated = recomputed(layer, *args) if self.use_checkpoint else layer(*args)
            tokens = torch.cat([tokens[:, :start], updated], 1) if start else updated
        return features.with_tokens(tokens)
