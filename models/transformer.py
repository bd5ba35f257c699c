"""Encoder, queries, decoder: the transformers of DINO and Deformable DETR, which differ in where queries come from.

B batch, N tokens of all levels, Q queries, C channels, K classes.
"""
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.layers.initialise import initialise_matrices
from models.layers.linear import Linear
from models.layers.position_encoding import coordinate_sine_embedding
from models.remembered import remembered
from models.structures import FlatFeatures, Proposals, Queries, TokenScores, unpadded_centres


class Transformer(nn.Module):
    """What all of them share."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module, dim: int, num_levels: int):
        super().__init__()
        self.level_embed = nn.Parameter(torch.randn(num_levels, dim))
        self.encoder = encoder
        self.decoder = decoder

    def selection_parts(self) -> list[str]:
        """Names of the modules that choose the queries."""
        return []


class TwoStageTransformer(Transformer):
    """Every encoder token is a candidate (Deformable DETR, section 4.2 and appendix A.4)."""

    enc_output: nn.Linear
    enc_output_norm: nn.LayerNorm

    def candidates(self, memory: FlatFeatures) -> tuple[Tensor, Tensor]:
        """Every token as the heads that judge it see it [B, N, C], and its anchor (see `token_anchors`)."""
        anchors, unusable = token_anchors(memory)
        return self.enc_output_norm(self.enc_output(memory.tokens.masked_fill(unusable, 0))), anchors

    def selection_parts(self) -> list[str]:
        return ["enc_output", "enc_output_norm"]


class DINOTransformer(TwoStageTransformer):
    """Two stages as in DINO (section 3.4): the tokens with the highest scores become the decoder's first boxes; the
    content of the queries is learned (mixed query selection) or, without `embed_init_tgt`, taken from the tokens too.

    num_queries: the most that there are. class_head and bbox_head score and refine the tokens.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, dim: int, num_levels: int, num_queries: int,
                 embed_init_tgt: bool, class_head: nn.Module, bbox_head: nn.Module):
        super().__init__(encoder, decoder, dim, num_levels)
        self.tgt_embed = nn.Embedding(num_queries, dim) if embed_init_tgt else None
        self.enc_output = Linear(dim, dim)
        self.enc_output_norm = nn.LayerNorm(dim)
        initialise_matrices(self.enc_output)
        self.enc_out_bbox_embed = bbox_head
        self.enc_out_class_embed = class_head

    def select(self, memory: FlatFeatures, count: int) -> Proposals:
        """The `count` tokens with the highest class score, best first, or all where there are fewer."""
        tokens, anchors = self.candidates(memory)
        scores = self.enc_out_class_embed(tokens).amax(-1)
        chosen = scores.topk(min(count, scores.shape[1]), dim=1).indices[..., None]
        content = tokens.gather(1, chosen.expand(-1, -1, tokens.shape[-1]))
        # The box head reads the chosen tokens only: the others' boxes are never used.
        return Proposals(content, self.enc_out_bbox_embed(content) + anchors.gather(1, chosen.expand(-1, -1, 4)))

    def queries(self, proposals: Proposals) -> Queries:
        """Queries that start at the proposals, without gradient into them."""
        content = proposals.content.detach()
        if self.tgt_embed is not None:
            content = self.tgt_embed.weight[: content.shape[1]].expand_as(content)
        return Queries(content, proposals.box_logits.detach())

    def selection_parts(self) -> list[str]:
        return [*super().selection_parts(), "enc_out_class_embed", "enc_out_bbox_embed"]


class DeformableDETRTransformer(Transformer):
    """One stage (Deformable DETR, section 4.2): learned queries, whose reference points are a linear function of their
    position encodings.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, dim: int, num_levels: int):
        super().__init__(encoder, decoder, dim, num_levels)
        self.reference_points = nn.Linear(dim, 2)
        initialise_matrices(self.reference_points)
        nn.init.zeros_(self.reference_points.bias)

    def queries(self, memory: FlatFeatures, embed: Tensor | None, count: int,
                judge_all: bool = True) -> tuple[Queries, None]:
        """The first `count` of embed [Q, 2 C], position encodings and contents; no proposals to judge."""
        assert embed is not None  # only proposals make queries without it
        pos, content = embed[:count].expand(memory.tokens.shape[0], -1, -1).chunk(2, -1)
        return Queries(content, self.reference_points(pos), pos=pos), None


class TwoStageDeformableDETRTransformer(TwoStageTransformer):
    """Two stages as in Deformable DETR (section 4.2 and appendix A.4): the tokens that look most like any object become
    queries; their position and content are functions of their boxes only.

    class_head and bbox_head score and refine the tokens.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, dim: int, num_levels: int, class_head: nn.Module,
                 bbox_head: nn.Module):
        super().__init__(encoder, decoder, dim, num_levels)
        self.enc_output = Linear(dim, dim)
        self.enc_output_norm = nn.LayerNorm(dim)
        self.pos_trans = Linear(2 * dim, 2 * dim)
        self.pos_trans_norm = nn.LayerNorm(2 * dim)
        initialise_matrices(self.enc_output)
        initialise_matrices(self.pos_trans)
        self.proposal_heads = (class_head, bbox_head)  # a tuple: their parameters have names in the decoder

    def queries(self, memory: FlatFeatures, embed: Tensor | None, count: int,
                judge_all: bool = True) -> tuple[Queries, TokenScores | None]:
        """Queries at the `count` tokens with the highest scores, or at all where there are fewer, without gradient
        into the proposals, which are all tokens: with `judge_all` they are returned too. embed [Q, C] replaces their
        content (mixed query selection: DINO, section 3.4).
        """
        tokens, anchors = self.candidates(memory)
        class_head, bbox_head = self.proposal_heads
        logits = class_head(tokens)
        chosen = logits[..., 0].topk(min(count, logits.shape[1]), dim=1).indices  # class 0 stands for any object
        rows, scores = chosen[..., None], None
        if judge_all:
            scores = TokenScores(logits, bbox_head(tokens) + anchors)
            chosen_boxes = scores.box_logits.gather(1, rows.expand(-1, -1, 4)).detach()
        else:
            tokens = tokens.gather(1, rows.expand(-1, -1, tokens.shape[-1]))
            chosen_boxes = (bbox_head(tokens) + anchors.gather(1, rows.expand(-1, -1, 4))).detach()
        encoded = coordinate_sine_embedding(chosen_boxes.sigmoid(), tokens.shape[-1] // 2)
        pos, content = self.pos_trans_norm(self.pos_trans(encoded)).chunk(2, -1)
        if embed is not None:
            content = embed[: chosen.shape[1]].expand_as(pos)
        return Queries(content, chosen_boxes, pos=pos), scores

    def selection_parts(self) -> list[str]:
        return [*super().selection_parts(), "pos_trans", "pos_trans_norm"]


def token_anchors(memory: FlatFeatures) -> tuple[Tensor, Tensor]:
    """A box around every token, its side 0.05 * 2^level of the image: inverse sigmoids [B, N, 4], infinite where
    the token is padding or its box is too close to the border; and which tokens are unusable so [B or 1, N, 1].
    """
    centres = memory.token_centres()
    if memory.padding is not None:
        return _anchors(centres, memory.shapes, memory.padding[..., None])
    anchors, unusable = unpadded_anchors(tuple(memory.shapes), device=centres.device, dtype=centres.dtype)
    return anchors.expand(centres.shape[0], -1, -1), unusable


@remembered
def unpadded_anchors(shapes: tuple[tuple[int, int], ...], *, device: torch.device,
                     dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """token_anchors of images without padding: [1, N, 4] and [1, N, 1]."""
    return _anchors(unpadded_centres(shapes, device=device, dtype=dtype), shapes)


def _anchors(centres: Tensor, shapes: Sequence[tuple[int, int]],
             padding: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """See token_anchors; centres [B, N, 2], padding [B, N, 1]."""
    sides = torch.cat([centres.new_full((h * w,), 0.05 * 2.0**level) for level, (h, w) in enumerate(shapes)])
    anchors = torch.cat([centres, sides[None, :, None].expand(*centres.shape)], -1)
    unusable = ~((anchors > 0.01) & (anchors < 0.99)).all(-1, keepdim=True)
    if padding is not None:
        unusable = unusable | padding
    return torch.logit(anchors).masked_fill(unusable, torch.inf), unusable
