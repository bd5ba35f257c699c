"""Flatten, encode, select queries, decode: the two-stage transformer of DINO (DINO, section 3.4).

B batch, N tokens of all levels, Q queries, C channels, K classes.
"""
import torch
from torch import Tensor, nn

from models.layers.initialise import initialise_transformer
from models.structures import DecoderOutput, FlatFeatures, Proposals, Queries


class TwoStageTransformer(nn.Module):
    """The best encoder tokens become the decoder's first boxes; their content is learned (mixed query selection)
    or, without `embed_init_tgt`, taken from the tokens too.

    The heads that score and refine the tokens (`enc_out_class_embed`, `enc_out_bbox_embed`) come from the detector.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, dim: int, num_levels: int, num_queries: int,
                 embed_init_tgt: bool):
        super().__init__()
        self.level_embed = nn.Parameter(torch.empty(num_levels, dim))
        self.encoder = encoder
        self.decoder = decoder
        self.tgt_embed = nn.Embedding(num_queries, dim) if embed_init_tgt else None
        self.enc_output = nn.Linear(dim, dim)
        self.enc_output_norm = nn.LayerNorm(dim)
        self.num_queries = num_queries
        self._init_parameters()

    def _init_parameters(self) -> None:
        initialise_transformer(self)
        nn.init.normal_(self.level_embed)
        if self.tgt_embed is not None:
            nn.init.normal_(self.tgt_embed.weight)

    def select(self, memory: FlatFeatures) -> Proposals:
        """The `num_queries` tokens with the highest class score, or all where there are fewer."""
        anchors, usable = token_anchors(memory)
        tokens = self.enc_output_norm(self.enc_output(memory.tokens.masked_fill(~usable, 0)))
        scores = self.enc_out_class_embed(tokens).amax(-1)
        best = scores.topk(min(self.num_queries, scores.shape[1]), dim=1).indices[..., None]
        content = tokens.gather(1, best.expand(-1, -1, tokens.shape[-1]))
        # The box head sees the chosen tokens alone: the others' boxes are never used.
        return Proposals(content, self.enc_out_bbox_embed(content) + anchors.gather(1, best.expand(-1, -1, 4)))

    def queries(self, proposals: Proposals) -> Queries:
        """Queries that start at the proposals, without gradient into them."""
        content = proposals.content.detach()
        if self.tgt_embed is not None:
            content = self.tgt_embed.weight[: content.shape[1]].expand_as(content)
        return Queries(content, proposals.box_logits.detach())

    def decode(self, queries: Queries, memory: FlatFeatures) -> DecoderOutput:
        return self.decoder(queries, memory)


def token_anchors(memory: FlatFeatures) -> tuple[Tensor, Tensor]:
    """A box around every token, its side 0.05 * 2^level of the image: inverse sigmoids [B, N, 4], infinite where
    the token is padding or its box too near the border; and which tokens are usable [B, N, 1].
    """
    ratios = memory.valid_ratios
    centres = memory.reference_points()[:, :, 0] / ratios[:, :1]  # undo the first level's ratio: [0, 1] is the image
    sides = torch.cat([ratios.new_full((h * w,), 0.05 * 2.0**level) for level, (h, w) in enumerate(memory.shapes)])
    anchors = torch.cat([centres, sides[None, :, None].expand(*centres.shape)], -1)
    usable = ((anchors > 0.01) & (anchors < 0.99)).all(-1, keepdim=True) & ~memory.padding[..., None]
    return torch.logit(anchors).masked_fill(~usable, torch.inf), usable
