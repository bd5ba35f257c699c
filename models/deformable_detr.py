"""Deformable DETR in its three forms, and H-DETR, which adds a one-to-many branch.

B batch, N tokens of all levels, Q queries, C channels, K classes.
"""
from dataclasses import replace

import torch
from torch import Tensor, nn

from models.backbones import Backbone
from models.detector import Detector, as_outputs
from models.features import multi_scale_features
from models.heads import LayerHeads, by_suffix, split_queries
from models.parts import (
    Built,
    make_backbone,
    make_criterion,
    make_decoder,
    make_encoder,
    make_input_proj,
    make_loss_weights,
    make_postprocessors,
    refuse_global_attention,
)
from models.structures import FlatFeatures, Queries
from models.transformer import DeformableDETRTransformer, TwoStageDeformableDETRTransformer
from util.errors import UserError
from util.nested_tensor import NestedTensor
from util.options import DeformableDETROptions, Options
from util.precision import at_least_float32


class DeformableDETR(Detector):
    """The transformer decides between one stage and two, its decoder whether boxes are refined.

    query_embed: learned queries (one stage) or contents (mixed selection), None where they come from proposals only.
    one_to_many: how many further queries see each other only, and only in training (H-DETR, section 3.2).
    """

    input_proj: nn.ModuleList
    class_embed: nn.ModuleList
    bbox_embed: nn.ModuleList

    def __init__(self, backbone: Backbone, transformer: DeformableDETRTransformer | TwoStageDeformableDETRTransformer,
                 input_proj: nn.ModuleList, heads: LayerHeads, query_embed: nn.Embedding | None, num_queries: int,
                 one_to_many: int = 0, aux_loss: bool = True):
        super().__init__(aux_loss)
        self.transformer = transformer
        self.class_embed, self.bbox_embed = heads.class_embed, heads.bbox_embed
        self.query_embed = query_embed
        self.input_proj = input_proj
        self.backbone = backbone
        self.num_queries, self.one_to_many = num_queries, one_to_many

    def transformer_parts(self) -> dict[str, list[str]]:
        selection = [f"transformer.{name}" for name in self.transformer.selection_parts()]
        if selection:  # the last heads are those of the proposals
            last = len(self.class_embed) - 1
            selection += [f"class_embed.{last}", f"bbox_embed.{last}"]
        return {"encoder": ["transformer.encoder"], "query selection": selection, "decoder": ["transformer.decoder"]}

    def features(self, samples: NestedTensor) -> FlatFeatures:
        """Tokens of all levels: the backbone's maps, and coarser ones made from the last by strided convolutions."""
        return multi_scale_features(samples, self.backbone, self.input_proj, self.transformer.level_embed)

    def detect(self, features: FlatFeatures, targets: list[dict[str, Tensor]] | None) -> dict:
        """Targets are ignored. Adds, with two stages, "enc_outputs" (of all N tokens), and in training with a
        one-to-many branch "one2many_outputs", its predictions by the suffixes of their losses.
        """
        memory = self.transformer.encoder(features)
        one_to_many = self.one_to_many if self.training else 0
        embed = None if self.query_embed is None else self.query_embed.weight
        queries, proposals = self.transformer.queries(memory, embed, self.num_queries + one_to_many)
        if one_to_many:
            queries = _separated(queries, self.num_queries)
        layers = self.predictions(self.transformer.decoder(queries, memory))
        one_to_one_layers, one_to_many_layers = split_queries(layers, self.num_queries)
        outputs = as_outputs(one_to_one_layers)
        if one_to_many:
            outputs["one2many_outputs"] = by_suffix(one_to_many_layers)
        if proposals is not None:
            outputs["enc_outputs"] = {"pred_logits": at_least_float32(proposals.logits),
                                      "pred_boxes": at_least_float32(proposals.box_logits).sigmoid()}
        return outputs


def _separated(queries: Queries, count: int) -> Queries:
    """The queries with a mask that keeps the first `count` and the others from seeing each other."""
    first = torch.arange(queries.content.shape[1], device=queries.content.device) < count
    return replace(queries, attn_mask=first[:, None] != first[None, :])


def build_deformable_detr(options: Options) -> Built:
    form, shared, loss = options.deformable_detr, options.transformer, options.loss
    dim, levels, num_queries = shared.hidden_dim, shared.num_feature_levels, options.decoder.num_queries
    refuse_global_attention(options)
    _check(form, loss.aux_loss)
    depth = options.decoder.depth
    backbone = make_backbone(options)
    input_proj = make_input_proj(backbone.num_channels, levels, dim)
    share = not form.with_box_refine
    num_heads = depth + 1 if form.two_stage else depth  # the last, which no layer uses, is for the proposals
    heads = LayerHeads(dim, options.data.class_count, num_heads, share_bbox=share, share_class=share,
                       share_enc_bbox=True, share_enc_class=True)
    encoder, decoder = make_encoder(options), make_decoder(options, heads, "deformable")
    transformer: DeformableDETRTransformer | TwoStageDeformableDETRTransformer
    if form.two_stage:
        transformer = TwoStageDeformableDETRTransformer(encoder, decoder, dim, levels, heads.class_embed[-1],
                                                        heads.bbox_embed[-1])
    else:
        transformer = DeformableDETRTransformer(encoder, decoder, dim, levels)
        heads.start_with_small_boxes()
    model = DeformableDETR(backbone, transformer, input_proj, heads, _query_embed(options), num_queries,
                           form.num_queries_one2many, loss.aux_loss)
    weights = replace(make_loss_weights(loss), enc=loss.interm_loss_coef if form.two_stage else None,
                      one2many=form.lambda_one2many if form.num_queries_one2many else None)
    return model, make_criterion(loss, depth, weights, copies=form.k_one2many), make_postprocessors(options)


def _query_embed(options: Options) -> nn.Embedding | None:
    form, dim = options.deformable_detr, options.transformer.hidden_dim
    if form.two_stage and not form.mixed_selection:
        return None
    # Where the proposals give the positions, only the content is learned.
    return nn.Embedding(options.decoder.num_queries + form.num_queries_one2many, dim if form.two_stage else 2 * dim)


def _check(form: DeformableDETROptions, aux_loss: bool) -> None:
    if form.two_stage and not form.with_box_refine:
        raise UserError("two_stage=True needs with_box_refine=True: the proposals are boxes to refine")
    if form.mixed_selection and not form.two_stage:
        raise UserError("mixed_selection=True needs two_stage=True: without proposals all of a query is learned")
    if form.look_forward_twice and not form.with_box_refine:
        raise UserError("look_forward_twice=True needs with_box_refine=True")
    if form.with_box_refine and not aux_loss:
        raise UserError("aux_loss=False leaves the heads of all layers but the last untrained: "
                        "set with_box_refine=False")
    if form.num_queries_one2many < 0 or form.k_one2many < 1:
        raise UserError(f"num_queries_one2many={form.num_queries_one2many} must be at least 0, and "
                        f"k_one2many={form.k_one2many} at least 1")
