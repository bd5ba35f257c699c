"""The DINO decoder (DINO, section 3): box queries refined layer by layer.

B batch, Q queries, N tokens of all levels, C channels, L levels.
"""
from collections.abc import Callable

from torch import Tensor, nn

from models.layers.mlp import MLP
from models.layers.position_encoding import box_sine_embedding
from models.layers.recompute import recomputed
from models.structures import DecoderOutput, FlatFeatures, Queries
from util.box_ops import inverse_sigmoid


class DINODecoderLayer(nn.Module):
    """Self-attention among queries, deformable attention to the memory, feed-forward."""

    def __init__(self, cross_attn: nn.Module, dim: int, num_heads: int, dim_feedforward: int, dropout: float,
                 activation: Callable[[Tensor], Tensor]):
        super().__init__()
        self.cross_attn = cross_attn
        self.norm1 = nn.LayerNorm(dim)
        self.self_attn = nn.MultiheadAttention(dim, num_heads, dropout=dropout, batch_first=True)
        self.norm2 = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, dim)
        self.norm3 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.activation = activation

    def forward(self, content: Tensor, pos: Tensor, reference: Tensor, memory: FlatFeatures,
                attn_mask: Tensor | None = None) -> Tensor:
        """content and pos [B, Q, C], reference boxes [B, Q, L, 4] as seen by each level. Returns [B, Q, C]."""
        where = content + pos
        attended = self.self_attn(where, where, content, attn_mask=attn_mask, need_weights=False)[0]
        content = self.norm2(content + self.dropout(attended))
        attended = self.cross_attn(content + pos, reference, memory.tokens, memory.shapes, memory.padding)
        content = self.norm1(content + self.dropout(attended))
        hidden = self.dropout(self.activation(self.linear1(content)))
        return self.norm3(content + self.dropout(self.linear2(hidden)))


class DINODecoder(nn.Module):
    """Layers with iterative box refinement. The box heads (`bbox_embed`, one a layer) are the detector's own.

    Each layer's box is predicted from the undetached box of the layer before it (look forward twice), unless
    `detach_boxes` is set.
    """

    def __init__(self, layers: list[nn.Module], dim: int, use_checkpoint: bool = False, detach_boxes: bool = False):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(dim)
        self.ref_point_head = MLP(2 * dim, dim, dim, 2)
        self.num_feats = dim // 2
        self.use_checkpoint = use_checkpoint
        self.detach_boxes = detach_boxes

    def forward(self, queries: Queries, memory: FlatFeatures) -> DecoderOutput:
        content, boxes = queries.content, queries.box_logits.sigmoid()
        ratios = memory.valid_ratios.repeat(1, 1, 2)[:, None]  # [B, 1, L, 4]
        hidden, reference = [], [boxes]
        for layer, box_head in zip(self.layers, self.bbox_embed):
            seen = boxes[:, :, None] * ratios
            pos = self.ref_point_head(box_sine_embedding(seen[:, :, 0], self.num_feats))
            args = (content, pos, seen, memory, queries.attn_mask)
            content = recomputed(layer, *args) if self.use_checkpoint else layer(*args)
            hidden.append(self.norm(content))
            refined = (box_head(content) + inverse_sigmoid(boxes)).sigmoid()
            boxes = refined.detach()
            reference.append(boxes if self.detach_boxes else refined)
        return DecoderOutput(hidden, reference[:-1])
