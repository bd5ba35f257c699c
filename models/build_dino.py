"""Builds DINO and Lite-DINO from the options."""
from torch import nn

from models.backbones import Backbone, build_backbone
from models.classification import FocalClassification
from models.criterion import LossWeights, SetCriterion
from models.decoders.deformable import DeformableDecoderLayer
from models.decoders.dino import DINODecoder
from models.denoising import Denoising
from models.dino import DINO, make_input_proj
from models.encoders.deformable import DeformableEncoder, DeformableEncoderLayer
from models.encoders.interleaved import CrossScaleLayer, InterleavedEncoder
from models.heads import Heads
from models.layers.activations import ACTIVATIONS
from models.layers.deform_attn import DeformableAttention, KeyAwareDeformAttn, MSDeformAttn
from models.matcher import HungarianMatcher
from models.postprocess import PostProcess
from models.transformer import TwoStageTransformer
from util.errors import UserError
from util.options import (
    DecoderOptions,
    DeformableDETROptions,
    EncoderOptions,
    LossOptions,
    Options,
    TransformerOptions,
)


def build_dino(options: Options) -> tuple[DINO, SetCriterion, dict]:
    attention, decoder_options, denoising = options.transformer, options.decoder, options.denoising
    dim, num_classes, levels = attention.hidden_dim, options.data.num_classes, attention.num_feature_levels
    labels = num_classes if denoising.dn_labelbook_size is None else denoising.dn_labelbook_size
    if labels < num_classes:
        raise UserError(f"dn_labelbook_size={labels} is smaller than num_classes={num_classes}")

    if options.deformable_detr != DeformableDETROptions():
        raise UserError(f"{', '.join(vars(options.deformable_detr))} are for Deformable DETR, not for DINO")
    backbone = make_backbone(options)
    separate = not (decoder_options.dec_pred_bbox_embed_share and decoder_options.dec_pred_class_embed_share)
    if separate and not options.loss.aux_loss:
        raise UserError("aux_loss=False leaves the heads of all layers but the last untrained: share them "
                        "(dec_pred_bbox_embed_share, dec_pred_class_embed_share)")
    decoder = DINODecoder(make_decoder_layers(attention, decoder_options), dim, attention.deformable_use_checkpoint,
                          decoder_options.use_detached_boxes_dec_out)
    transformer = TwoStageTransformer(make_encoder(attention, options.encoder), decoder, dim, levels,
                                      decoder_options.num_queries, decoder_options.embed_init_tgt)
    heads = Heads(dim, num_classes, decoder_options.dec_layers, decoder_options.dec_pred_bbox_embed_share,
                  decoder_options.dec_pred_class_embed_share, decoder_options.two_stage_bbox_embed_share,
                  decoder_options.two_stage_class_embed_share)
    model = DINO(
        backbone, transformer, make_input_proj(backbone.num_channels, levels, dim), heads,
        label_enc=nn.Embedding(labels + 1, dim),
        denoising=Denoising(denoising.dn_number, denoising.dn_box_noise_scale, denoising.dn_label_noise_ratio)
        if denoising.use_dn else None,
        aux_loss=options.loss.aux_loss)
    loss = options.loss
    weights = LossWeights(loss.cls_loss_coef, loss.bbox_loss_coef, loss.giou_loss_coef,
                          loss.interm_loss_coef, not loss.no_interm_box_loss)
    criterion = make_criterion(loss, weights, decoder_options.dec_layers, denoising.use_dn)
    post = PostProcess(options.postprocess.num_select, options.postprocess.nms_iou_threshold)
    return model, criterion, {"bbox": post}


def make_backbone(options: Options) -> Backbone:
    """The backbone of a detector with a deformable transformer. Raises UserError for options that fit no such one."""
    if (options.transformer.pre_norm or options.loss.classification != "focal"
            or options.stages.stage_levels is not None):
        raise UserError("pre_norm=True, classification='softmax' and stage_levels are for DETR and SDETR, not for "
                        f"modelname={options.modelname!r}")
    backbone = build_backbone(options.backbone, options.position, options.transformer.hidden_dim,
                              train=options.training.lr_backbone > 0)
    levels = options.transformer.num_feature_levels
    if levels < len(backbone.num_channels):
        raise UserError(f"num_feature_levels={levels} is fewer than the {len(backbone.num_channels)} maps of "
                        f"return_interm_indices={options.backbone.return_interm_indices}")
    return backbone


def make_decoder_layers(attention: TransformerOptions, options: DecoderOptions) -> list[DeformableDecoderLayer]:
    return [DeformableDecoderLayer(make_attention(attention, options.dec_n_points), attention.hidden_dim,
                                   attention.nheads, attention.dim_feedforward, attention.dropout,
                                   ACTIVATIONS[attention.transformer_activation])
            for _ in range(options.dec_layers)]


def make_attention(options: TransformerOptions, num_points: int) -> DeformableAttention:
    shape = (options.hidden_dim, options.num_feature_levels, options.nheads, num_points, options.same_loc)
    return KeyAwareDeformAttn(*shape, options.proj_key) if options.key_aware else MSDeformAttn(*shape)


def make_encoder(attention: TransformerOptions, options: EncoderOptions, finest_read: int = 0) -> DeformableEncoder:
    """The deformable encoder, or the interleaved one where num_expansion is set, for readers of the tokens from level
    `finest_read` on.
    """
    def layer(kind: type[DeformableEncoderLayer]) -> DeformableEncoderLayer:
        return kind(make_attention(attention, options.enc_n_points), attention.hidden_dim, attention.dim_feedforward,
                    attention.dropout, ACTIVATIONS[attention.transformer_activation])

    if options.num_expansion is None:
        layers = [layer(DeformableEncoderLayer) for _ in range(options.enc_layers)]
        return DeformableEncoder(layers, attention.deformable_use_checkpoint)
    if not 1 <= options.enc_scale <= attention.num_feature_levels:
        raise UserError(f"enc_scale={options.enc_scale} must be from 1 to num_feature_levels="
                        f"{attention.num_feature_levels}")
    if options.num_expansion < 1 or options.enc_layers % options.num_expansion:
        raise UserError(f"num_expansion={options.num_expansion} must divide enc_layers={options.enc_layers}")
    block = options.enc_layers // options.num_expansion
    crossing = [options.small_expand and (i + 1) % block == 0 for i in range(options.enc_layers)]
    if finest_read >= attention.num_feature_levels - options.enc_scale:  # nobody reads the last low-level update
        crossing[-1] = False
    layers = [layer(CrossScaleLayer if cross else DeformableEncoderLayer) for cross in crossing]
    return InterleavedEncoder(layers, options.num_expansion, options.enc_scale, attention.deformable_use_checkpoint,
                              finest_read)


def make_criterion(options: LossOptions, weights: LossWeights, num_layers: int, use_dn: bool = False,
                   copies: int = 1) -> SetCriterion:
    classification = FocalClassification(options.focal_alpha)
    matcher = HungarianMatcher(options.set_cost_class, options.set_cost_bbox, options.set_cost_giou, classification)
    return SetCriterion(matcher, weights, num_layers, classification, use_dn, options.aux_loss, copies)
