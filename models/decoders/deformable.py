"""The decoder of Deformable DETR (section 4.2 and appendix A.4): queries that refine a point or a box.

B batch, Q queries, N tokens of all levels, C channels, L levels.
"""
from collections.abc import Callable

from torch import Tensor, nn

from models.heads import Heads, LayerHeads
from models.layers.activations import ACTIVATIONS
from models.layers.attention import MultiheadAttention, additive
from models.layers.deform_attn import make_attention
from models.layers.initialise import initialise_matrices
from models.layers.linear import Linear
from models.layers.recompute import recomputed
from models.structures import DecoderOutput, FlatFeatures, Queries
from util.box_ops import apply_box_delta
from util.errors import UserError
from util.options import Options


class DeformableDecoderLayer(nn.Module):
    """Self-attention among queries, deformable attention to the memory, feed-forward."""

    def __init__(self, cross_attn: nn.Module, dim: int, num_heads: int, dim_feedforward: int, dropout: float,
                 activation: Callable[[Tensor], Tensor]):
        super().__init__()
        self.cross_attn = cross_attn
        self.norm1 = nn.LayerNorm(dim)
        self.self_attn = MultiheadAttention(dim, num_heads, dropout)
        self.norm2 = nn.LayerNorm(dim)
        self.linear1 = Linear(dim, dim_feedforward, activation)
        self.linear2 = Linear(dim_feedforward, dim)
        self.norm3 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        initialise_matrices(self)

    def forward(self, content: Tensor, pos: Tensor, reference: Tensor, memory: FlatFeatures,
                attn_mask: Tensor | None = None) -> Tensor:
        """content and pos [B, Q, C]; reference [B, Q, L, 2 or 4], the points or boxes as seen by each level;
        attn_mask [Q, Q], True where a query may not see another. Returns the content [B, Q, C] updated.
        """
        with_pos = content + pos
        attended = self.self_attn(with_pos, with_pos, content, attn_mask=attn_mask, need_weights=False)[0]
        content = self.norm2(content + self.dropout(attended))
        attended = self.cross_attn(content + pos, reference, memory.tokens, memory.shapes, memory.padding)
        content = self.norm1(content + self.dropout(attended))
        hidden = self.dropout(self.linear1(content))
        return self.norm3(content + self.dropout(self.linear2(hidden)))


class DeformableDecoder(nn.Module):
    """Layers over queries with a position encoding of their own.

    With `bbox_embed`, the detector's box heads (one per layer), every layer refines the boxes for the next one; without
    them, all layers share the first reference points. Each layer's box is predicted from the box of the layer before
    it: without gradient into that, or, without `detach_boxes`, with it (look forward twice: DINO, section 3.5).

    `class_embed`, the class heads, are not used here: the published names of their parameters demand them.
    """

    EPS = 1e-5  # of the inverse sigmoid

    def __init__(self, layers: list[nn.Module], bbox_embed: nn.ModuleList | None = None,
                 class_embed: nn.ModuleList | None = None, use_checkpoint: bool = False, detach_boxes: bool = True):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm: nn.Module | None = None
        self.bbox_embed = bbox_embed
        self.class_embed = class_embed
        self.use_checkpoint = use_checkpoint
        self.detach_boxes = detach_boxes

    def position(self, queries: Queries, level_reference: Tensor) -> Tensor:
        """Position encoding [B, Q, C] of queries at level_reference [B, Q, L, 2 or 4], see DeformableDecoderLayer."""
        return queries.require("pos")

    def forward(self, queries: Queries, memory: FlatFeatures) -> DecoderOutput:
        content, boxes = queries.content, queries.require("box_logits").sigmoid()
        hidden: list[Tensor] = []
        reference = [boxes]
        mask = None if queries.attn_mask is None else additive(queries.attn_mask, content.dtype)
        for i, layer in enumerate(self.layers):
            if i and self.bbox_embed is not None:
                refined = apply_box_delta(boxes, self.bbox_embed[i - 1](content), self.EPS).sigmoid()
                boxes = refined.detach()
                reference.append(boxes if self.detach_boxes else refined)
            elif i:
                reference.append(boxes)
            level_reference = memory.on_levels(boxes)
            pos = self.position(queries, level_reference)
            content = recomputed(layer, content, pos, level_reference, memory, mask,
                                 enabled=self.use_checkpoint)
            hidden.append(content)
        return DecoderOutput(hidden, reference, self.EPS, self.norm)


def build_deformable_decoder(options: Options, heads: Heads) -> DeformableDecoder:
    form = options.deformable_detr
    heads = per_layer("deformable", heads)
    return DeformableDecoder(make_layers(options), heads.bbox_embed if form.with_box_refine else None,
                             heads.class_embed if form.two_stage else None,
                             options.transformer.deformable_use_checkpoint, detach_boxes=not form.look_forward_twice)


def make_layers(options: Options) -> list[nn.Module]:
    shared = options.transformer
    return [DeformableDecoderLayer(make_attention(shared, options.decoder.dec_n_points), shared.hidden_dim,
                                   shared.nheads, options.decoder_width, shared.dropout,
                                   ACTIVATIONS[shared.transformer_activation])
            for _ in range(options.decoder.depth)]


def per_layer(decoder: str, heads: Heads) -> LayerHeads:
    if isinstance(heads, LayerHeads):
        return heads
    raise UserError(f"decoder={decoder!r} works on boxes: it is for DINO and Deformable DETR")
