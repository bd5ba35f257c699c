"""The interleaved encoder (Lite DETR, section 3.3): few high-level tokens often, many low-level tokens rarely.

B batch, Q tokens that a layer updates, C channels.
"""
from collections.abc import Callable

import torch
from torch import Tensor, nn

from models.encoders.deformable import DeformableEncoder, DeformableEncoderLayer
from models.structures import FlatFeatures
from util.errors import UserError


class CrossScaleLayer(DeformableEncoderLayer):
    """The layer that ends a block: it updates all tokens, the low-level ones through a small feed-forward."""

    def __init__(self, self_attn: nn.Module, dim: int, dim_feedforward: int, dropout: float,
                 activation: Callable[[Tensor], Tensor]):
        super().__init__(self_attn, dim, dim_feedforward, dropout, activation)
        self.linear12 = nn.Linear(dim, dim)  # the published names of the small feed-forward
        self.linear22 = nn.Linear(dim, dim)
        self.norm22 = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor, pos: Tensor, reference: Tensor, memory: Tensor,
                features: FlatFeatures, num_low: int = 0) -> Tensor:
        """See DeformableEncoderLayer; tokens[:, :num_low] are the low-level ones."""
        tokens = self._attend(tokens, pos, reference, memory, features)
        return torch.cat([self._small_feed_forward(tokens[:, :num_low]), self._feed_forward(tokens[:, num_low:])], 1)

    def _small_feed_forward(self, tokens: Tensor) -> Tensor:
        hidden = self.dropout(self.activation(self.linear12(tokens)))
        return self.norm22(tokens + self.dropout(self.linear22(hidden)))


class InterleavedEncoder(DeformableEncoder):
    """`num_blocks` equal blocks of layers; only the last layer of a block updates the low-level tokens.

    `enc_scale` is the number of the coarsest levels that count as high-level. In the paper's name HxLy-(A+1)xB,
    H is enc_scale and B num_blocks. Every layer attends to the tokens of all levels.

    `finest_read` is the finest level whose tokens are read after the encoder: the last layer leaves finer ones alone.
    """

    def __init__(self, layers: list[nn.Module], num_blocks: int, enc_scale: int, use_checkpoint: bool = False,
                 finest_read: int = 0):
        super().__init__(layers, use_checkpoint)
        if num_blocks < 1 or len(layers) % num_blocks:
            raise UserError(f"num_expansion {num_blocks} does not divide enc_layers {len(layers)}")
        self.block_length = len(layers) // num_blocks
        self.enc_scale = enc_scale
        self.finest_read = finest_read

    def start(self, layer: int, features: FlatFeatures) -> int:
        if layer + 1 == len(self.layers):
            return features.level_start[self.finest_read]
        return 0 if (layer + 1) % self.block_length == 0 else self.num_low(features)

    def num_low(self, features: FlatFeatures) -> int:
        return features.level_start[len(features.shapes) - self.enc_scale]
