"""Supervision that finds every object several times, in training only; detection is by the other queries and heads.

B batch, Q queries, C channels.
"""
import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from models.heads import Heads, LayerPredictions, Predictions, by_suffix, layer_predictions, split_queries
from models.structures import DecoderOutput, Queries
from util.errors import UserError
from util.options import Options


class OneToMany(nn.Module):
    """What a detector adds to its decoder for it, one of:

    num_queries: further queries, which see each other only (H-DETR, section 3.2).
    heads: class and box heads that judge the same queries once more (MS-DETR, section 3.2).
    """

    def __init__(self, num_queries: int = 0, heads: tuple[nn.Module, nn.Module] | None = None):
        super().__init__()
        self.num_queries = num_queries
        self.has_heads = heads is not None
        if heads is not None:
            self.class_embed, self.bbox_embed = heads

    @property
    def further_queries(self) -> int:
        return self.num_queries if self.training else 0

    def mask(self, count: int, device: torch.device, primary: int) -> Tensor | None:
        """[count, count] True where one of the first `primary` queries and a further one would see each other; None
        without further ones."""
        if not self.further_queries:
            return None
        first = torch.arange(count, device=device) < primary
        return first[:, None] != first[None, :]

    def separated(self, queries: Queries, primary: int) -> Queries:
        """The queries with that mask."""
        content = queries.content
        return replace(queries, attn_mask=self.mask(content.shape[1], content.device, primary))

    def divided(self, layers: LayerPredictions, decoded: DecoderOutput, primary: int
                ) -> tuple[LayerPredictions, dict[str, Predictions]]:
        """The predictions of the first `primary` queries, and those to be matched one-to-many by the suffix of
        their losses. layers: of the decoder's output `decoded`, without denoising queries."""
        if self.further_queries:
            layers, further = split_queries(layers, primary)
            return layers, by_suffix(further)
        if self.has_heads and self.training:
            further = layer_predictions(decoded, self.class_embed, self.bbox_embed)
            return layers, by_suffix({name: x[-len(layers[name]):] for name, x in further.items()})
        return layers, {}


def make_one_to_many(options: Options, heads: Heads, depth: int) -> OneToMany:
    """heads: the detector's, `depth` decoder layers'; those for one-to-many start as copies of them."""
    form = options.one_to_many
    if form.one2many == "branch" and not form.num_queries_one2many:
        raise UserError("one2many='branch' needs num_queries_one2many, its number of queries: five times num_queries "
                        "in H-DETR")
    if form.one2many != "branch" and form.num_queries_one2many:
        raise UserError(f"num_queries_one2many={form.num_queries_one2many} is for one2many='branch', not for "
                        f"{form.one2many!r}")
    if form.one2many != "shared":
        return OneToMany(form.num_queries_one2many)
    # Heads of proposals come after those of the layers; nothing would train copies of them.
    own = [head[:depth] if isinstance(head, nn.ModuleList) else head for head in (heads.class_embed, heads.bbox_embed)]
    class_embed, bbox_embed = copy.deepcopy(own)
    return OneToMany(heads=(class_embed, bbox_embed))
