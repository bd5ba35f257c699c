"""Builds DETR, SDETR and Lite-SDETR from the options."""
import math

import torch
from torch import nn

from models.backbones import Backbone, build_backbone
from models.build_dino import make_encoder
from models.classification import Classification, FocalClassification, SoftmaxClassification
from models.criterion import LossWeights, SetCriterion
from models.decoders.global_attention import GlobalDecoder, GlobalDecoderLayer
from models.detr import DETR
from models.dino import make_input_proj
from models.encoders.global_attention import GlobalEncoder, GlobalEncoderLayer
from models.layers.activations import ACTIVATIONS
from models.layers.global_attention import GlobalAttentionLayer
from models.layers.initialise import initialise_transformer
from models.layers.mlp import MLP
from models.matcher import HungarianMatcher
from models.postprocess import PostProcess
from models.sdetr import SDETR
from models.stage import Stage
from util.errors import UserError
from util.options import Options, TransformerOptions

Built = tuple[nn.Module, SetCriterion, dict]


def build_detr(options: Options) -> Built:
    attention = options.transformer
    if len(options.backbone.return_interm_indices) != 1:
        raise UserError(f"return_interm_indices={options.backbone.return_interm_indices}: DETR reads one map, [3]")
    if options.stages.stage_levels is not None:
        raise UserError("stage_levels is for stacked models (sdetr, lite_sdetr); DETR has one stage")
    backbone = _backbone(options)
    encoder = _encoder(attention, options.encoder.enc_layers, attention.nheads)
    decoder = _decoder(attention, options.decoder.dec_layers, attention.nheads)
    input_proj = nn.Conv2d(backbone.num_channels[0], attention.hidden_dim, kernel_size=1)
    model = DETR(backbone, input_proj, Stage([0], encoder, decoder), _queries(options), **_heads(options),
                 aux_loss=options.loss.aux_loss)
    return model, *_losses(options, options.decoder.dec_layers)


def build_sdetr(options: Options) -> Built:
    attention, backbone = options.transformer, _backbone(options)
    levels = _stage_levels(options, len(backbone.num_channels))
    unread = set(range(len(backbone.num_channels))) - {level for stage in levels for level in stage}
    if unread:
        raise UserError(f"stage_levels={levels}: no stage reads level {min(unread)} of return_interm_indices="
                        f"{options.backbone.return_interm_indices}")
    encoders = [_encoder(attention, *stage) for stage in zip(
        _each_stage("enc_layers", options.encoder.enc_layers, len(levels)),
        _each_stage("enc_nheads", options.stages.enc_nheads or attention.nheads, len(levels)))]
    input_proj = nn.ModuleList(nn.Conv2d(c, attention.hidden_dim, kernel_size=1) for c in backbone.num_channels)
    mixed = any(len(stage) > 1 for stage in levels)  # tokens of several levels have to be told apart
    return _build_stacked(options, backbone, input_proj, levels, encoders,
                          level_embed=_level_embed(len(backbone.num_channels), attention.hidden_dim) if mixed else None)


def build_lite_sdetr(options: Options) -> Built:
    """The encoder of Lite-DINO in front of SDETR's stages."""
    attention, backbone = options.transformer, _backbone(options)
    if isinstance(options.encoder.enc_layers, list) or options.stages.enc_nheads is not None:
        raise UserError("Lite-SDETR has one encoder for all stages: enc_layers is a number, and enc_nheads stays unset")
    if attention.num_feature_levels < len(backbone.num_channels):
        raise UserError(f"num_feature_levels={attention.num_feature_levels} is fewer than the maps of "
                        f"return_interm_indices={options.backbone.return_interm_indices}")
    levels = _stage_levels(options, attention.num_feature_levels)
    input_proj = make_input_proj(backbone.num_channels, attention.num_feature_levels, attention.hidden_dim)
    encoder = make_encoder(attention, options.encoder, finest_read=min(level for stage in levels for level in stage))
    initialise_transformer(encoder)
    return _build_stacked(options, backbone, input_proj, levels, [None] * len(levels), encoder=encoder,
                          level_embed=_level_embed(attention.num_feature_levels, attention.hidden_dim))


def _build_stacked(options: Options, backbone: Backbone, input_proj: nn.ModuleList, levels: list[list[int]],
                   encoders: list[GlobalEncoder | None], **common: nn.Module | nn.Parameter | None) -> Built:
    depths = _each_stage("dec_layers", options.decoder.dec_layers, len(levels))
    heads = _each_stage("dec_nheads", options.stages.dec_nheads or options.transformer.nheads, len(levels))
    stages = [Stage(read, encoder, _decoder(options.transformer, depth, num_heads))
              for read, encoder, depth, num_heads in zip(levels, encoders, depths, heads)]
    model = SDETR(backbone, input_proj, stages, [_queries(options) for _ in stages], **_heads(options), **common,
                  aux_loss=options.loss.aux_loss)
    return model, *_losses(options, sum(depths))


def _stage_levels(options: Options, num_levels: int) -> list[list[int]]:
    levels = options.stages.stage_levels
    if not levels:
        raise UserError(f"stage_levels={levels}: a stacked model needs a list of levels for each stage, [[1], [0]]")
    for stage in levels:
        if not stage or stage != sorted(set(stage)) or not set(stage) <= set(range(num_levels)):
            raise UserError(f"stage_levels={levels}: the levels of a stage must be ascending and from 0, the finest, "
                            f"to {num_levels - 1}")
    return levels


def _each_stage(name: str, value: int | list[int], num_stages: int) -> list[int]:
    """One value a stage; a single one is for all of them."""
    values = value if isinstance(value, list) else [value]
    if len(values) not in (1, num_stages):
        raise UserError(f"{name}={value!r} must be a number, or a list with one for each of the {num_stages} stages")
    return values if len(values) == num_stages else values * num_stages


def _backbone(options: Options) -> Backbone:
    return build_backbone(options.backbone, options.position, options.transformer.hidden_dim,
                          train=options.training.lr_backbone > 0)


def _encoder(options: TransformerOptions, depth: int, num_heads: int) -> GlobalEncoder:
    norm = nn.LayerNorm(options.hidden_dim) if options.pre_norm else None
    return GlobalEncoder(_layers(GlobalEncoderLayer, "encoder", options, depth, num_heads), norm,
                         options.deformable_use_checkpoint)


def _decoder(options: TransformerOptions, depth: int, num_heads: int) -> GlobalDecoder:
    return GlobalDecoder(_layers(GlobalDecoderLayer, "decoder", options, depth, num_heads),
                         nn.LayerNorm(options.hidden_dim), options.deformable_use_checkpoint)


def _layers(kind: type[GlobalAttentionLayer], part: str, options: TransformerOptions, depth: int,
            num_heads: int) -> list[GlobalAttentionLayer]:
    if num_heads < 1 or options.hidden_dim % num_heads:
        raise UserError(f"hidden_dim={options.hidden_dim} is not a multiple of the {num_heads} heads of the {part}")
    if depth < (part == "decoder"):
        raise UserError(f"{depth} {part} layers are too few")
    return [kind(options.hidden_dim, num_heads, options.dim_feedforward, options.dropout,
                 ACTIVATIONS[options.transformer_activation], options.pre_norm) for _ in range(depth)]


def _level_embed(num_levels: int, dim: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(num_levels, dim))


def _queries(options: Options) -> nn.Embedding:
    return nn.Embedding(options.decoder.num_queries, options.transformer.hidden_dim)


def _heads(options: Options) -> dict[str, nn.Module]:
    dim, classification = options.transformer.hidden_dim, _classification(options)
    classes = nn.Linear(dim, classification.num_logits(options.data.num_classes))
    if isinstance(classification, FocalClassification):
        nn.init.constant_(classes.bias, -math.log(99))  # prior probability 0.01
    return {"class_embed": classes, "bbox_embed": MLP(dim, dim, 4, 3)}


def _classification(options: Options) -> Classification:
    if options.loss.classification == "focal":
        return FocalClassification(options.loss.focal_alpha)
    return SoftmaxClassification(options.loss.eos_coef)


def _losses(options: Options, num_layers: int) -> tuple[SetCriterion, dict]:
    """Criterion and post-processors."""
    loss, classification = options.loss, _classification(options)
    matcher = HungarianMatcher(loss.set_cost_class, loss.set_cost_bbox, loss.set_cost_giou, classification)
    weights = LossWeights(loss.cls_loss_coef, loss.bbox_loss_coef, loss.giou_loss_coef, interm=None)
    criterion = SetCriterion(matcher, weights, num_layers, classification, use_dn=False, aux_loss=loss.aux_loss)
    post = PostProcess(options.postprocess.num_select, options.postprocess.nms_iou_threshold, classification)
    return criterion, {"bbox": post}
