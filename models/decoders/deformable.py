"""The decoder of Deformable DETR (section 4.2 and appendix A.4): queries that refine a point or a box.

B batch, Q queries, N tokens of all levels, C channels, L levels.
"""
from collections.abc import Callable

from torch import Tensor, nn

from models.layers.recompute import recomputed
from models.structures import DecoderOutput, FlatFeatures, Queries
from util.box_ops import moved


class DeformableDecoderLayer(nn.Module):
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
        """content and pos [B, Q, C], reference points or boxes [B, Q, L, 2 or 4] as
        seen by each level. Returns [B, Q, C]."""
        where = content + pos
        attended = self.self_attn(where, where, content, attn_mask=attn_mask, need_weights=False)[0]
        content = self.norm2(content + self.dropout(attended))
        attended = self.cross_attn(content + pos, reference, memory.tokens, memory.shapes, memory.padding)
        content = self.norm1(content + self.dropout(attended))
        hidden = self.dropout(self.activation(self.linear1(content)))
        return self.norm3(content + self.dropout(self.linear2(hidden)))


class DeformableDecoder(nn.Module):
    """Layers over queries with a position encoding of their own.

    With `bbox_embed`, the detector's box heads (one a layer), every layer refines the boxes for the next one; without,
    all layers share the first reference points. Each layer's box is predicted from the box of the layer before it:
    without gradient into that, or, without `detach_boxes`, with it (look forward twice: DINO, section 3.5).
    """

    EPS = 1e-5  # of the inverse sigmoid

    def __init__(self, layers: list[nn.Module], use_checkpoint: bool = False, detach_boxes: bool = True):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = nn.Identity()
        self.bbox_embed: nn.ModuleList | None = None
        self.use_checkpoint = use_checkpoint
        self.detach_boxes = detach_boxes

    def position(self, queries: Queries, seen: Tensor) -> Tensor:
        """Position encoding [B, Q, C] of queries whose boxes are seen as [B, Q, L, 2 or 4] by the levels."""
        return queries.pos

    def forward(self, queries: Queries, memory: FlatFeatures) -> DecoderOutput:
        content, boxes = queries.content, queries.box_logits.sigmoid()
        ratios = memory.valid_ratios.repeat(1, 1, 2)[:, None]  # [B, 1, L, 4]
        hidden, reference = [], [boxes]
        for i, layer in enumerate(self.layers):
            seen = boxes[:, :, None] * ratios[..., : boxes.shape[-1]]
            args = (content, self.position(queries, seen), seen, memory, queries.attn_mask)
            content = recomputed(layer, *args) if self.use_checkpoint else layer(*args)
            hidden.append(self.norm(content))
            refined = boxes
            if self.bbox_embed is not None:
                refined = moved(boxes, self.bbox_embed[i](content), self.EPS).sigmoid()
                boxes = refined.detach()
            reference.append(boxes if self.detach_boxes else refined)
        return DecoderOutput(hidden, reference[:-1])
