"""The encoder of DETR (DETR, section 3.2): every token attends to every other.

B batch, N tokens, C channels.
"""
from torch import Tensor, nn

from models.layers.global_attention import GlobalAttentionLayer
from models.layers.recompute import recomputed
from models.structures import FlatFeatures
from util.options import Options


class GlobalEncoderLayer(GlobalAttentionLayer):
    """Self-attention among tokens, feed-forward."""

    PART = "encoder"

    def forward(self, tokens: Tensor, pos: Tensor, padding: Tensor | None) -> Tensor:
        """tokens and pos [B, N, C], padding [B, N] or None. Returns the tokens [B, N, C] updated."""
        tokens = self._residual(tokens, self.norm1, lambda x: self._attend_self(x, pos, padding))
        return self._residual(tokens, self.norm2, self._feed_forward)


class GlobalEncoder(nn.Module):
    """`layers` in turn, then `norm`, which pre-norm layers need; with `use_checkpoint`, activations are recomputed."""

    def __init__(self, layers: list[nn.Module], norm: nn.Module | None = None, use_checkpoint: bool = False):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm
        self.use_checkpoint = use_checkpoint

    def forward(self, features: FlatFeatures) -> FlatFeatures:
        """features with the tokens [B, N, C] updated."""
        tokens = features.tokens
        for layer in self.layers:
            tokens = recomputed(layer, tokens, features.pos, features.padding, enabled=self.use_checkpoint)
        return features.with_tokens(tokens if self.norm is None else self.norm(tokens))


def build_global_encoder(options: Options) -> GlobalEncoder:
    shared = options.transformer
    layers: list[nn.Module] = [GlobalEncoderLayer.from_options(shared, options.encoder_width)
                               for _ in range(options.encoder.depth)]
    norm = nn.LayerNorm(shared.hidden_dim) if shared.pre_norm else None
    return GlobalEncoder(layers, norm, shared.deformable_use_checkpoint)
