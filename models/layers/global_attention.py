"""What the layers of global attention share (DETR, section 3.2 and appendix A.3).

B batch, Q queries, N tokens, C channels.
"""
from collections.abc import Callable

from torch import Tensor, nn

from models.layers.activations import ACTIVATIONS
from models.layers.attention import MultiheadAttention
from models.layers.initialise import initialise_matrices
from models.layers.linear import Linear
from util.errors import UserError
from util.options import TransformerOptions


class GlobalAttentionLayer(nn.Module):
    """Self-attention and feed-forward. pre_norm normalises what enters a block instead of what leaves its residual."""

    PART: str  # "encoder" or "decoder", for messages

    def __init__(self, dim: int, num_heads: int, dim_feedforward: int, dropout: float,
                 activation: Callable[[Tensor], Tensor], pre_norm: bool):
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise UserError(f"hidden_dim={dim} is not a multiple of the {num_heads} heads of the {self.PART}")
        self.self_attn = MultiheadAttention(dim, num_heads, dropout)
        self.linear1 = Linear(dim, dim_feedforward, activation)
        self.linear2 = Linear(dim_feedforward, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.pre_norm = pre_norm
        initialise_matrices(self)

    @classmethod
    def from_options(cls, options: TransformerOptions, dim_feedforward: int) -> "GlobalAttentionLayer":
        return cls(options.hidden_dim, options.nheads, dim_feedforward, options.dropout,
                   ACTIVATIONS[options.transformer_activation], options.pre_norm)

    def _residual(self, x: Tensor, norm: nn.LayerNorm, block: Callable[[Tensor], Tensor]) -> Tensor:
        if self.pre_norm:
            return x + self.dropout(block(norm(x)))
        return norm(x + self.dropout(block(x)))

    def _attend_self(self, x: Tensor, pos: Tensor, padding: Tensor | None = None,
                     attn_mask: Tensor | None = None) -> Tensor:
        """x and pos [B, N, C]; padding [B, N] is True on tokens that no one may attend to, attn_mask [N, N] where a
        token may not attend to another, or is what is added to its logits.
        """
        with_pos = x + pos
        return self.self_attn(with_pos, with_pos, x, key_padding_mask=padding, attn_mask=attn_mask,
                              need_weights=False)[0]

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.linear2(self.dropout(self.linear1(x)))
