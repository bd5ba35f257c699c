"""DINO and Lite-DINO: backbone, two-stage transformer, box queries with denoising.

B batch, Q queries, C channels, K classes, L levels.
"""
from dataclasses import replace

from torch import Tensor, nn

from models.backbones import Backbone
from models.denoising import Denoising, prepend
from models.detector import Detector
from models.features import multi_scale_features
from models.heads import LayerHeads, by_suffix, split_queries
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
from models.transformer import DINOTransformer
from util.errors import UserError
from util.nested_tensor import NestedTensor
from util.options import DeformableDETROptions, Options
from util.precision import at_least_float32

GIOU_EPS = 1e-6  # of DINO's and Lite DETR's loss and matcher; DETR, Deformable DETR and SDETR have none


class DINO(Detector):
    """A detector in which only the encoder decides between DINO and Lite-DINO."""

    input_proj: nn.ModuleList

    def __init__(self, backbone: Backbone, transformer: DINOTransformer, input_proj: nn.ModuleList,
                 heads: LayerHeads, label_enc: nn.Embedding, denoising: Denoising | None, num_queries: int,
                 one_to_many: OneToMany | None = None, aux_loss: bool = True):
        super().__init__(aux_loss, one_to_many)
        self.transformer = transformer
        self.label_enc = label_enc
        self.input_proj = input_proj
        self.backbone = backbone
        self.bbox_embed, self.class_embed = heads.bbox_embed, heads.class_embed
        self.num_classes = heads.num_classes
        self.denoising = denoising
        self.num_queries = num_queries

    def transformer_parts(self) -> dict[str, list[str]]:
        return {"encoder": ["transformer.encoder"],
                "query selection": [f"transformer.{name}" for name in self.transformer.selection_parts()],
                "decoder": ["transformer.decoder"]}

    def features(self, samples: NestedTensor) -> FlatFeatures:
        """Tokens of all levels: the backbone's maps, and coarser ones made from the last by strided convolutions."""
        return multi_scale_features(samples, self.backbone, self.input_proj, self.transformer.level_embed)

    def detect(self, features: FlatFeatures, targets: list[dict[str, Tensor]] | None) -> dict:
        """Adds "interm_outputs" (of the encoder's proposals), and when training on targets "dn_outputs" with "dn_meta"
        for the denoising queries.
        """
        memory = self.transformer.encoder(features)
        chosen = self.transformer.select(memory, self.num_queries + self.one_to_many.further_queries)
        proposals = chosen.first(self.num_queries)
        queries, meta = self.one_to_many.separated(self.transformer.queries(chosen), self.num_queries), None
        if self.training and targets is not None and self.denoising is not None:
            noised = self.denoising.prepare(targets, self.label_enc, self.num_classes)
            if noised is not None:
                noise, meta = noised
                queries = prepend(noise, queries, meta)
        decoded = self.transformer.decoder(queries, memory)
        if self.training:  # keeps label_enc in the graph of every batch: DDP wants a gradient for it on every rank
            last = decoded.hidden[-1] + 0 * self.label_enc.weight[0]
            decoded = replace(decoded, hidden=[*decoded.hidden[:-1], last])
        layers, restored = self.predictions(decoded), {}
        if meta is not None:
            noised_layers, layers = split_queries(layers, meta.num_queries)
            restored = {"dn_meta": meta, "dn_outputs": by_suffix(noised_layers)}
            decoded = decoded.without_first(meta.num_queries)
        outputs = self.outputs(layers, decoded, self.num_queries) | restored
        if self.detections_only:
            return outputs
        return outputs | {"interm_outputs": {
            "pred_logits": at_least_float32(self.transformer.enc_out_class_embed(proposals.content)),
            "pred_boxes": at_least_float32(proposals.box_logits).sigmoid()}}


def build_dino(options: Options) -> Built:
    shared, decoder, denoising, loss = options.transformer, options.decoder, options.denoising, options.loss
    classes, depth = options.data.class_count, decoder.depth
    _check(options, classes)
    backbone = make_backbone(options)
    input_proj = make_input_proj(backbone.num_channels, shared.num_feature_levels, shared.hidden_dim)
    heads = LayerHeads(shared.hidden_dim, classes, depth, decoder.dec_pred_bbox_embed_share,
                       decoder.dec_pred_class_embed_share, decoder.two_stage_bbox_embed_share,
                       decoder.two_stage_class_embed_share)
    transformer = DINOTransformer(
        make_encoder(options), make_decoder(options, heads, "dino"), shared.hidden_dim, shared.num_feature_levels,
        num_learned_queries(options), decoder.embed_init_tgt, heads.enc_out_class_embed, heads.enc_out_bbox_embed)
    labels = classes if denoising.dn_labelbook_size is None else denoising.dn_labelbook_size
    model = DINO(
        backbone, transformer, input_proj, heads, label_enc=nn.Embedding(labels + 1, shared.hidden_dim),
        denoising=Denoising(denoising.dn_number, denoising.dn_box_noise_scale, denoising.dn_label_noise_ratio)
        if denoising.use_dn else None,
        num_queries=decoder.num_queries, one_to_many=make_one_to_many(options, heads, depth), aux_loss=loss.aux_loss)
    weights = replace(make_loss_weights(loss), interm=loss.interm_loss_coef, interm_boxes=not loss.no_interm_box_loss)
    criterion = make_criterion(options, depth, weights, denoising.use_dn, giou_eps=GIOU_EPS)
    return model, criterion, make_postprocessors(options)


def _check(options: Options, classes: int) -> None:
    refuse_global_attention(options)
    if options.deformable_detr != DeformableDETROptions():
        raise UserError(f"{', '.join(vars(options.deformable_detr))} are for Deformable DETR, not for DINO")
    labels = options.denoising.dn_labelbook_size
    if labels is not None and labels < classes:
        raise UserError(f"dn_labelbook_size={labels} is smaller than num_classes={classes}")
    shared = options.decoder.dec_pred_bbox_embed_share and options.decoder.dec_pred_class_embed_share
    if not shared and not options.loss.aux_loss:
        raise UserError("aux_loss=False leaves the heads of all layers but the last untrained: share them "
                        "(dec_pred_bbox_embed_share, dec_pred_class_embed_share)")
