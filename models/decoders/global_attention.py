"""The decoder of DETR (DETR, section 3.2): every query attends to every token.

B batch, Q queries, N tokens, C channels.
"""
from collections.abc import Callable

from torch import Tensor, nn

from models.heads import Heads
from models.layers.attention import MultiheadAttention, additive
from models.layers.global_attention import GlobalAttentionLayer
from models.layers.initialise import initialise_matrices
from models.layers.recompute import recomputed
from models.structures import DecoderOutput, FlatFeatures, Queries
from util.options import Options


class GlobalDecoderLayer(GlobalAttentionLayer):
    """Self-attention among queries, attention to the memory, feed-forward."""

    PART = "decoder"

    def __init__(self, dim: int, num_heads: int, dim_feedforward: int, dropout: float,
                 activation: Callable[[Tensor], Tensor], pre_norm: bool):
        super().__init__(dim, num_heads, dim_feedforward, dropout, activation, pre_norm)
        self.multihead_attn = MultiheadAttention(dim, num_heads, dropout)
        self.norm3 = nn.LayerNorm(dim)
        initialise_matrices(self)

    def forward(self, content: Tensor, pos: Tensor, memory: FlatFeatures, attn_mask: Tensor | None = None) -> Tensor:
        """content and pos [B, Q, C]; attn_mask [Q, Q], True where a query may not see another. Returns the content
        [B, Q, C] updated.
        """
        content = self._residual(content, self.norm1, lambda x: self._attend_self(x, pos, attn_mask=attn_mask))
        content = self._residual(content, self.norm2, lambda x: self._attend_memory(x + pos, memory))
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

    def forward(self, queries: Queries, memory: FlatFeatures) -> DecoderOutput:
        """Queries need `pos`. Their boxes, if they have any, enter every layer as they are."""
        content, pos, hidden = queries.content, queries.require("pos"), []
        mask = None if queries.attn_mask is None else additive(queries.attn_mask, content.dtype)
        for layer in self.layers:
            content = recomputed(layer, content, pos, memory, mask, enabled=self.use_checkpoint)
            hidden.append(self.norm(content))
        reference = None if queries.box_logits is None else [queries.box_logits.sigmoid()] * len(hidden)
        return DecoderOutput(hidden, reference)


def build_global_decoder(options: Options, heads: Heads) -> GlobalDecoder:
    """The heads are not used: this decoder predicts no boxes between its layers."""
    shared = options.transformer
    layers: list[nn.Module] = [GlobalDecoderLayer.from_options(shared, options.decoder_width)
                               for _ in range(options.decoder.depth)]
    return GlobalDecoder(layers, nn.LayerNorm(shared.hidden_dim), shared.deformable_use_checkpoint)
