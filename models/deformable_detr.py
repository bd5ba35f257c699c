"""Deformable DETR in its three forms, and H-DETR, which adds a one-to-many branch.

B batch, N tokens of all levels, Q queries, C channels, K classes.
"""
from dataclasses import replace

from torch import Tensor, nn

from models.backbones import Backbone
from models.detector import Detector
from models.features import multi_scale_features
from models.heads import LayerHeads
from models.one_to_many import OneToMany, make_one_to_many
from models.parts import (
    Built,
    make_backbone,
    make_criterion,
    make_decoder,
    make_encoder,
    make_input_proj,
    make_loss_weights,
    make_postprocessors,
    num_learned_queries,
    refuse_global_attention,
)
from models.structures import FlatFeatures
from models.transformer import DeformableDETRTransformer, TwoStageDeformableDETRTransformer
from util.errors import UserError
from util.nested_tensor import NestedTensor
from util.options import DeformableDETROptions, Options
from util.precision import at_least_float32


class DeformableDETR(Detector):
    """The transformer decides between one stage and two, its decoder whether boxes are refined.

    query_embed: learned queries (one stage) or contents (mixed selection), None where they come from proposals only.
    """

    input_proj: nn.ModuleList
    class_embed: nn.ModuleList
    bbox_embed: nn.ModuleList

    def __init__(self, backbone: Backbone, transformer: DeformableDETRTransformer | TwoStageDeformableDETRTransformer,
                 input_proj: nn.ModuleList, heads: LayerHeads, query_embed: nn.Embedding | None, num_queries: int,
                 one_to_many: OneToMany | None = None, aux_loss: bool = True):
        super().__init__(aux_loss, one_to_many)
        self.transformer = transformer
        self.class_embed, self.bbox_embed = heads.class_embed, heads.bbox_embed
        self.query_embed = query_embed
        self.input_proj = input_proj
        self.backbone = backbone
        self.num_queries = num_queries

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
        """Targets are ignored. Adds, with two stages, "enc_outputs" (of all N tokens)."""
        memory = self.transformer.encoder(features)
        embed = None if self.query_embed is None else self.query_embed.weight
        count = self.num_queries + self.one_to_many.further_queries
        queries, proposals = self.transformer.queries(memory, embed, count, judge_all=not self.detections_only)
        decoded = self.transformer.decoder(self.one_to_many.separated(queries, self.num_queries), memory)
        outputs = self.outputs(self.predictions(decoded), decoded, self.num_queries)
        if proposals is not None:
            outputs["enc_outputs"] = {"pred_logits": at_least_float32(proposals.logits),
                                      "pred_boxes": at_least_float32(proposals.box_logits).sigmoid()}
        return outputs


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
                           make_one_to_many(options, heads, depth), loss.aux_loss)
    weights = replace(make_loss_weights(loss), enc=loss.interm_loss_coef if form.two_stage else None)
    return model, make_criterion(options, depth, weights), make_postprocessors(options)


def _query_embed(options: Options) -> nn.Embedding | None:
    form, dim = options.deformable_detr, options.transformer.hidden_dim
    if form.two_stage and not form.mixed_selection:
        return None
    # Where the proposals give the positions, only the content is learned.
    return nn.Embedding(num_learned_queries(options), dim if form.two_stage else 2 * dim)


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
