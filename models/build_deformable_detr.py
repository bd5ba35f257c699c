"""Builds Deformable DETR and H-DETR from the options."""
from torch import nn

from models.build_dino import make_backbone, make_criterion, make_decoder_layers, make_encoder
from models.criterion import LossWeights, SetCriterion
from models.decoders.deformable import DeformableDecoder
from models.deformable_detr import DeformableDETR
from models.dino import make_input_proj
from models.heads import Heads
from models.postprocess import PostProcess
from models.transformer import LearnedQueryTransformer, ProposalQueryTransformer
from util.errors import UserError
from util.options import DeformableDETROptions, Options


def build_deformable_detr(options: Options) -> tuple[DeformableDETR, SetCriterion, dict]:
    form, attention, loss = options.deformable_detr, options.transformer, options.loss
    _check(form, loss.aux_loss)
    dim, levels, depth = attention.hidden_dim, attention.num_feature_levels, options.decoder.dec_layers
    backbone = make_backbone(options)
    decoder = DeformableDecoder(make_decoder_layers(attention, options.decoder), attention.deformable_use_checkpoint,
                                detach_boxes=not form.look_forward_twice)
    kind = ProposalQueryTransformer if form.two_stage else LearnedQueryTransformer
    transformer = kind(make_encoder(attention, options.encoder), decoder, dim, levels)
    heads = Heads(dim, options.data.num_classes, depth + form.two_stage, share_bbox=not form.with_box_refine,
                  share_class=not form.with_box_refine, share_enc_bbox=True, share_enc_class=True)
    if form.with_box_refine:
        decoder.bbox_embed = heads.bbox_embed
    if form.two_stage:
        decoder.class_embed = heads.class_embed
    else:  # the first boxes are small: sigmoid(-2) of the image
        nn.init.constant_(heads.bbox_embed[0].layers[-1].bias[2:], -2.0)
    model = DeformableDETR(
        backbone, transformer, make_input_proj(backbone.num_channels, levels, dim), heads, _query_embed(options),
        options.decoder.num_queries, form.num_queries_one2many, loss.aux_loss)
    weights = LossWeights(
        loss.cls_loss_coef, loss.bbox_loss_coef, loss.giou_loss_coef, interm=None,
        enc=loss.interm_loss_coef if form.two_stage else None,
        one2many=form.lambda_one2many if form.num_queries_one2many else None)
    criterion = make_criterion(loss, weights, depth, copies=form.k_one2many)
    post = PostProcess(options.postprocess.num_select, options.postprocess.nms_iou_threshold)
    return model, criterion, {"bbox": post}


def _query_embed(options: Options) -> nn.Embedding | None:
    form, dim = options.deformable_detr, options.transformer.hidden_dim
    if form.two_stage and not form.mixed_selection:
        return None
    # Content alone where the proposals give the positions.
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
