"""The deformable encoder (Deformable DETR, section 4.2): every layer updates the tokens of all levels.

B batch, N tokens of all levels, Q tokens that a layer updates, C channels, L levels.
"""
from collections.abc import Callable

from torch import Tensor, nn

from models.layers.activations import ACTIVATIONS
from models.layers.deform_attn import make_attention
from models.layers.initialise import initialise_matrices
from models.layers.linear import Linear
from models.layers.recompute import recomputed
from models.structures import FlatFeatures
from util.errors import UserError
from util.options import Options


class DeformableEncoderLayer(nn.Module):
    """Deformable attention and feed-forward, each followed by its residual norm."""

    def __init__(self, self_attn: nn.Module, dim: int, dim_feedforward: int, dropout: float,
                 activation: Callable[[Tensor], Tensor]):
        super().__init__()
        self.self_attn = self_attn
        self.norm1 = nn.LayerNorm(dim)
        self.linear1 = Linear(dim, dim_feedforward, activation)
        self.linear2 = Linear(dim_feedforward, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        initialise_matrices(self)

    def forward(self, tokens: Tensor, pos: Tensor, reference: Tensor, memory: Tensor, features: FlatFeatures) -> Tensor:
        """Updates tokens [B, Q, C], with pos [B, Q, C] and reference points [B, Q, L, 2], from memory [B, N, C]."""
        return self._feed_forward(self._attend(tokens, pos, reference, memory, features))

    def _attend(self, tokens: Tensor, pos: Tensor, reference: Tensor, memory: Tensor, features: FlatFeatures) -> Tensor:
        attended = self.self_attn(tokens + pos, reference, memory, features.shapes, features.padding)
        return self.norm1(tokens + self.dropout(attended))

    def _feed_forward(self, tokens: Tensor) -> Tensor:
        hidden = self.dropout(self.linear1(tokens))
        return self.norm2(tokens + self.dropout(self.linear2(hidden)))


class DeformableEncoder(nn.Module):
    """`layers` in turn over all tokens; with `use_checkpoint`, activations are recomputed in the backward pass."""

    def __init__(self, layers: list[nn.Module], use_checkpoint: bool = False):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.use_checkpoint = use_checkpoint

    def forward(self, features: FlatFeatures) -> FlatFeatures:
        """features with the tokens [B, N, C] updated."""
        tokens, reference = features.tokens, features.reference_points()
        for layer in self.layers:
            tokens = recomputed(layer, tokens, features.pos, reference, tokens, features, enabled=self.use_checkpoint)
        return features.with_tokens(tokens)


def build_deformable_encoder(options: Options) -> DeformableEncoder:
    if options.encoder.num_expansion is not None:
        raise UserError(f"num_expansion={options.encoder.num_expansion} is for encoder='interleaved': with "
                        "encoder='deformable' every layer updates all tokens; set num_expansion=None")
    layers: list[nn.Module] = [make_layer(DeformableEncoderLayer, options)
                               for _ in range(options.encoder.depth)]
    return DeformableEncoder(layers, options.transformer.deformable_use_checkpoint)


def make_layer(kind: type[DeformableEncoderLayer], options: Options) -> DeformableEncoderLayer:
    shared, own = options.transformer, options.encoder
    attention = make_attention(shared, own.enc_n_points, own.same_loc, own.proj_key)
    return kind(attention, shared.hidden_dim, options.encoder_width, shared.dropout,
                ACTIVATIONS[shared.transformer_activation])
