"""The interleaved encoder (Lite DETR, section 3.3): it updates the few high-level tokens often, the many
low-level tokens rarely.

B batch, Q tokens that a layer updates, C channels.
"""
from collections.abc import Callable

import torch
from torch import Tensor, nn

from models.encoders.deformable import DeformableEncoderLayer, make_layer
from models.layers.initialise import initialise_matrices
from models.layers.linear import Linear
from models.layers.recompute import recomputed
from models.structures import FlatFeatures
from util.errors import UserError
from util.options import Options


class CrossScaleLayer(DeformableEncoderLayer):
    """The layer that ends a block: it updates all tokens, the low-level ones through a small feed-forward."""

    def __init__(self, self_attn: nn.Module, dim: int, dim_feedforward: int, dropout: float,
                 activation: Callable[[Tensor], Tensor]):
        super().__init__(self_attn, dim, dim_feedforward, dropout, activation)
        self.linear12 = Linear(dim, dim, activation)  # the published names of the small feed-forward
        self.linear22 = Linear(dim, dim)
        self.norm22 = nn.LayerNorm(dim)
        initialise_matrices(self)

    def forward(self, tokens: Tensor, pos: Tensor, reference: Tensor, memory: Tensor, features: FlatFeatures,
                num_low: int = 0) -> Tensor:
        """See DeformableEncoderLayer; tokens[:, :num_low] are the low-level ones."""
        low, high = self._attend(tokens, pos, reference, memory, features).split(
            [num_low, tokens.shape[1] - num_low], 1)
        return torch.cat([self._small_feed_forward(low), self._feed_forward(high)], 1)

    def _small_feed_forward(self, tokens: Tensor) -> Tensor:
        hidden = self.dropout(self.linear12(tokens))
        return self.norm22(tokens + self.dropout(self.linear22(hidden)))


class InterleavedEncoder(nn.Module):
    """`num_blocks` equal blocks of layers; only the last layer of a block updates the low-level tokens.

    `enc_scale` is the number of the coarsest levels that count as high-level. In the paper's name HxLy-(A+1)xB,
    H is enc_scale and B num_blocks. Every layer attends to the tokens of all levels.

    `finest_read` is the finest level whose tokens are read after the encoder: the last layer does not update finer
    ones.
    """

    def __init__(self, layers: list[nn.Module], num_blocks: int, enc_scale: int, use_checkpoint: bool = False,
                 finest_read: int = 0):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.block_length = block_length(len(layers), num_blocks)
        self.enc_scale = enc_scale
        self.use_checkpoint = use_checkpoint
        self.finest_read = finest_read

    def forward(self, features: FlatFeatures) -> FlatFeatures:
        """features with the tokens [B, N, C] updated."""
        tokens, pos, reference = features.tokens, features.pos, features.reference_points()
        starts, high = features.level_start, len(features.shapes) - self.enc_scale
        parts: dict[int, tuple[Tensor, Tensor]] = {}  # positions and references of the tokens from a level on
        for i, layer in enumerate(self.layers):
            level = self._finest_updated(i, high)
            first = starts[level]
            if level not in parts:
                parts[level] = pos[:, first:], reference[:, first:]
            kept, old = tokens.split([first, tokens.shape[1] - first], 1) if level else (None, tokens)
            args: tuple = (old, *parts[level], tokens, features)
            if isinstance(layer, CrossScaleLayer):
                args = (*args, starts[max(high, level)] - first)
            updated = recomputed(layer, *args, enabled=self.use_checkpoint)
            tokens = updated if kept is None else torch.cat([kept, updated], 1)
        return features.with_tokens(tokens)

    def _finest_updated(self, index: int, high: int) -> int:
        """The finest level that layer `index` updates; it updates all coarser ones. high: the finest high level."""
        if index + 1 == len(self.layers):
            return self.finest_read
        return 0 if (index + 1) % self.block_length == 0 else high


def build_interleaved_encoder(options: Options) -> InterleavedEncoder:
    shared, encoder = options.transformer, options.encoder
    if encoder.num_expansion is None:
        raise UserError("encoder='interleaved' needs num_expansion, its number of blocks")
    if not 1 <= encoder.enc_scale <= shared.num_feature_levels:
        raise UserError(f"enc_scale={encoder.enc_scale} must be from 1 to num_feature_levels="
                        f"{shared.num_feature_levels}")
    num_layers = encoder.depth
    block = block_length(num_layers, encoder.num_expansion)
    finest_read = min((level for stage in options.stages.stage_levels or [] for level in stage), default=0)
    low_level_is_read = finest_read < shared.num_feature_levels - encoder.enc_scale
    ends_block = [(i + 1) % block == 0 and (i + 1 < num_layers or low_level_is_read) for i in range(num_layers)]
    layers: list[nn.Module] = [
        make_layer(CrossScaleLayer if encoder.small_expand and ends else DeformableEncoderLayer, options)
        for ends in ends_block]
    return InterleavedEncoder(layers, encoder.num_expansion, encoder.enc_scale, shared.deformable_use_checkpoint,
                              finest_read)


def block_length(num_layers: int, num_blocks: int) -> int:
    if num_blocks < 1 or num_layers % num_blocks:
        raise UserError(f"num_expansion={num_blocks} must divide enc_layers={num_layers}")
    return num_layers // num_blocks
