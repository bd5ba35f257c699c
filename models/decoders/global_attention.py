"""The decoder of DETR (DETR, section 3.2): every query attends to every token.

B batch, Q queries, N tokens, C channels.
"""
from collections.abc import Callable

from torch import Tensor, nn

from models.layers.global_attention import GlobalAttentionLayer
from models.layers.recompute import recomputed
from models.structures import FlatFeatures


class GlobalDecoderLayer(GlobalAttentionLayer):
    """Self-attention among queries, attention to the memory, feed-forward."""

    def __init__(self, dim: int, num_heads: int, dim_feedforward: int, dropout: float,
                 activation: Callable[[Tensor], Tensor], pre_norm: bool):
        super().__init__(dim, num_heads, dim_feedforward, dropout, activation, pre_norm)
        self.multihead_attn = nn.MultiheadAttention(dim, num_heads, dropout=dropout, batch_first=True)
        self.norm3 = nn.LayerNorm(dim)

    def forward(self, content: Tensor, query_pos: Tensor, memory: FlatFeatures) -> Tensor:
        """content and query_pos [B, Q, C]. Returns the content [B, Q, C] updated."""
        content = self._residual(content, self.norm1, lambda x: self._attend_self(x, query_pos))
        content = self._residual(content, self.norm2, lambda x: self._attend_memory(x + query_pos, memory))
        return self._residual(content, self.norm3, self._feed_forward)

    def _attend_memory(self, queries: Tensor, memory: FlatFeatures) -> Tensor:
        return self.multihead_attn(queries, memory.tokens + memory.pos, memory.tokens,
                                   key_padding_mask=memory.padding, need_weights=False)[0]


class GlobalDecoder(nn.Module):
    """`layers` in turn; `norm` makes each layer's hidden state. With `use_checkpoint`, activations are recomputed."""

    def __init__(self, layers: list[nn.Module], norm: nn.Module, use_checkpoint: bool = False):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm
        self.use_checkpoint = use_checkpoint

    def forward(self, content: Tensor, query_pos: Tensor, memory: FlatFeatures) -> list[Tensor]:
        """content and query_pos [B, Q, C]. Returns the hidden state [B, Q, C] after each layer."""
        hidden = []
        for layer in self.layers:
            args = (content, query_pos, memory)
            content = recomputed(layer, *args) if self.use_checkpoint else layer(*args)
            hidden.append(self.norm(content))
        return hidden
