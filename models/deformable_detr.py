"""Deformable DETR in its three forms, and H-DETR, which adds a one-to-many branch.

B batch, N tokens of all levels, Q queries, C channels, K classes.
"""
import torch
from torch import Tensor, nn

from models.features import multi_scale_features
from models.heads import Heads, by_suffix, layer_predictions
from models.structures import Queries
from models.transformer import LearnedQueryTransformer, ProposalQueryTransformer
from util.nested_tensor import Images, NestedTensor
from util.precision import at_least_float32


class DeformableDETR(nn.Module):
    """The transformer decides between one stage and two, its decoder's `bbox_embed` whether boxes are refined.

    query_embed: learned queries (one stage) or contents (mixed selection), None where proposals alone make them.
    one_to_many: how many further queries see each other only, and only in training (H-DETR, section 3.2).
    """

    def __init__(self, backbone: nn.Module, transformer: LearnedQueryTransformer | ProposalQueryTransformer,
                 input_proj: nn.ModuleList, heads: Heads, query_embed: nn.Embedding | None, num_queries: int,
                 one_to_many: int = 0, aux_loss: bool = True):
        super().__init__()
        self.transformer = transformer
        self.class_embed, self.bbox_embed = heads.class_embed, heads.bbox_embed
        self.query_embed = query_embed
        self.input_proj = input_proj
        self.backbone = backbone
        self.num_queries, self.one_to_many = num_queries, one_to_many
        self.aux_loss = aux_loss

    @property
    def PARTS(self) -> dict[str, list[str]]:
        """The modules of each part that the benchmark counts."""
        proposals = [f"transformer.{name}" for name in self.transformer.PROPOSAL_PARTS]
        if proposals:
            last = len(self.class_embed) - 1
            proposals += [f"class_embed.{last}", f"bbox_embed.{last}"]
        return {"backbone": ["backbone.0"], "input projection": ["input_proj"], "encoder": ["transformer.encoder"],
                "query selection": proposals, "decoder": ["transformer.decoder"],
                "heads": ["class_embed", "bbox_embed"]}

    def forward(self, samples: Images, targets: list[dict[str, Tensor]] | None = None) -> dict:
        """samples: images [3, H, W], normalised; targets are not used.

        Returns "pred_logits" [B, Q, K], "pred_boxes" [B, Q, 4] cxcywh in [0, 1], "aux_outputs" (the same of each layer
        before the last), with two stages "enc_outputs" (of all N tokens), and in training with a one-to-many branch
        "one2many_outputs", its predictions by the suffixes of their losses.
        """
        if not isinstance(samples, NestedTensor):
            samples = NestedTensor.from_list(samples)
        features = multi_scale_features(samples, self.backbone, self.input_proj, self.transformer.level_embed)
        memory = self.transformer.encoder(features)
        branching = self.training and self.one_to_many > 0
        embed = None if self.query_embed is None else self.query_embed.weight
        queries, proposals = self.transformer.queries(memory, embed, self.num_queries + branching * self.one_to_many)
        if branching:
            queries = _separated(queries, self.num_queries)
        decoded = self.transformer.decode(queries, memory)
        layers = layer_predictions(decoded, self.class_embed, self.bbox_embed, self.transformer.decoder.EPS)
        if not self.aux_loss:
            layers = layers[-1:]
        one_to_one = [{name: x[:, : self.num_queries] for name, x in layer.items()} for layer in layers]
        outputs = one_to_one[-1] | {"aux_outputs": one_to_one[:-1]}
        if branching:
            outputs["one2many_outputs"] = by_suffix(
                [{name: x[:, self.num_queries:] for name, x in layer.items()} for layer in layers])
        if proposals is not None:
            outputs["enc_outputs"] = {"pred_logits": at_least_float32(proposals.logits),
                                      "pred_boxes": at_least_float32(proposals.box_logits).sigmoid()}
        return outputs


def _separated(queries: Queries, count: int) -> Queries:
    """The queries with a mask that keeps the first `count` and the others from seeing each other."""
    first = torch.arange(queries.content.shape[1], device=queries.content.device) < count
    return Queries(queries.content, queries.box_logits, first[:, None] != first[None, :], queries.pos)
