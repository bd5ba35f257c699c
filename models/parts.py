"""What the builders of several detectors share."""
import math
from dataclasses import replace
from typing import cast

from torch import nn

from models.backbones import Backbone, build_backbone
from models.classification import (
    IOU_RULES,
    Classification,
    FocalClassification,
    IoUAwareClassification,
    SoftmaxClassification,
)
from models.criterion import LossWeights, SetCriterion
from models.decoders import DECODERS
from models.detector import Detector
from models.encoders import ENCODERS
from models.heads import Heads, SharedHeads
from models.matcher import HungarianMatcher, OneToManyMatcher
from models.postprocess import PostProcess
from models.registry import choose
from util.errors import UserError
from util.options import LossOptions, Options

Built = tuple[Detector, SetCriterion, dict[str, PostProcess]]


def make_backbone(options: Options) -> Backbone:
    return build_backbone(options.backbone, options.position, options.transformer.hidden_dim,
                          train=options.training.lr_backbone > 0)


def refuse_global_attention(options: Options) -> None:
    """Raises UserError for options that detectors with a deformable transformer do not read."""
    if (options.transformer.pre_norm or options.loss.classification == "softmax"
            or options.stages.stage_levels is not None):
        raise UserError("pre_norm=True, classification='softmax' and stage_levels are for DETR and SDETR, not for "
                        f"modelname={options.modelname!r}")


def make_input_proj(in_channels: list[int], num_levels: int, dim: int) -> nn.ModuleList:
    """1x1 convolutions for the backbone's maps, then 3x3 ones of stride 2 for further levels, with GroupNorm."""
    if num_levels < len(in_channels):
        raise UserError(f"num_feature_levels={num_levels} is fewer than the {len(in_channels)} maps of "
                        "return_interm_indices")
    convs = [nn.Conv2d(c, dim, kernel_size=1) for c in in_channels]
    for level in range(len(in_channels), num_levels):
        source = in_channels[-1] if level == len(in_channels) else dim
        convs.append(nn.Conv2d(source, dim, kernel_size=3, stride=2, padding=1))
    for conv in convs:
        nn.init.xavier_uniform_(conv.weight)
        nn.init.zeros_(cast(nn.Parameter, conv.bias))
    groups = math.gcd(32, dim // 4)  # 32, as published, where that leaves at least four channels per group
    return nn.ModuleList(nn.Sequential(conv, nn.GroupNorm(groups, dim)) for conv in convs)


def make_encoder(options: Options, default: str | None = None) -> nn.Module:
    """The encoder that the config names; else `default`, or without one the deformable encoder, interleaved where
    num_expansion is set.
    """
    if default is None:
        default = "deformable" if options.encoder.num_expansion is None else "interleaved"
    return choose(ENCODERS, "encoder", options.encoder.encoder or default)(options)


def make_decoder(options: Options, heads: Heads, default: str) -> nn.Module:
    """The decoder that the config names, else `default`."""
    return choose(DECODERS, "decoder", options.decoder.decoder or default)(options, heads)


def num_learned_queries(options: Options) -> int:
    """Those that detect, then those of a one-to-many branch."""
    return options.decoder.num_queries + options.one_to_many.num_queries_one2many


def make_shared_heads(options: Options) -> SharedHeads:
    num_logits = make_classification(options.loss).num_logits(options.data.class_count)
    return SharedHeads(options.transformer.hidden_dim, num_logits, focal=options.loss.classification != "softmax")


def make_classification(options: LossOptions) -> Classification:
    kind, cost = options.classification, options.class_cost
    if cost is None:
        cost = "position" if kind == "position" else "focal"
    if kind == "softmax":
        if options.class_cost is not None:
            raise UserError(f"class_cost={cost!r} is not for classification='softmax', whose cost is the probability")
        return SoftmaxClassification(options.eos_coef)
    by_position = cost == "position"
    if kind == "focal":
        return FocalClassification(options.focal_alpha, position_cost=by_position)
    return IoUAwareClassification(options.focal_alpha, position_cost=by_position, rule=IOU_RULES[kind],
                                  target_cost=cost == "target")


def make_loss_weights(options: LossOptions) -> LossWeights:
    """Those of the decoder; a detector with further losses adds theirs."""
    return LossWeights(options.cls_loss_coef, options.bbox_loss_coef, options.giou_loss_coef)


def make_criterion(options: Options, num_layers: int, weights: LossWeights | None = None, use_dn: bool = False,
                   giou_eps: float = 0.0) -> SetCriterion:
    """weights: of the parts other than one-to-many supervision."""
    loss, form = options.loss, options.one_to_many
    weights = weights or make_loss_weights(loss)
    if form.one2many != "none":
        weights = replace(weights, one2many=form.lambda_one2many)
    classification = make_classification(loss)
    matcher = HungarianMatcher(loss.set_cost_class, loss.set_cost_bbox, loss.set_cost_giou, classification, giou_eps)
    shared = OneToManyMatcher(form.k_one2many, classification) if form.one2many == "shared" else None
    return SetCriterion(matcher, weights, num_layers, classification, use_dn, loss.aux_loss, form.k_one2many, shared)


def make_postprocessors(options: Options) -> dict[str, PostProcess]:
    return {"bbox": PostProcess(options.postprocess.num_select, options.postprocess.nms_iou_threshold,
                                make_classification(options.loss))}


def stage_options(options: Options, num_levels: int, num_heads: int, enc_layers: int = 0,
                  dec_layers: int = 0) -> Options:
    """The options of one encoder or decoder of a stacked model, as a model of one stage has them."""
    return replace(options,
                   transformer=replace(options.transformer, nheads=num_heads, num_feature_levels=num_levels),
                   encoder=replace(options.encoder, enc_layers=enc_layers),
                   decoder=replace(options.decoder, dec_layers=dec_layers),
                   stages=replace(options.stages, stage_levels=None))
