import pytest
import torch

from models import build_model
from models.encoders.deformable import DeformableEncoder
from models.encoders.interleaved import CrossScaleLayer, InterleavedEncoder
from models.layers.deform_attn import DeformableAttention, KeyAwareDeformAttn, MSDeformAttn
from util.errors import UserError


@pytest.mark.parametrize("options, message", [
    ({"num_expansion": 2, "enc_layers": 3}, "num_expansion=2 must divide enc_layers=3"),
    ({"num_expansion": 0}, "num_expansion=0 must divide"),
    ({"num_expansion": -1}, "num_expansion=-1 must divide"),
    ({"enc_scale": 0}, "enc_scale=0 must be from 1 to num_feature_levels=3"),
    ({"enc_scale": 4}, "enc_scale=4 must be from 1 to num_feature_levels=3"),
    ({"nheads": 3}, "hidden_dim 32 is not a multiple of nheads 3"),
    ({"hidden_dim": 30, "nheads": 3}, "hidden_dim=30 must be a multiple of 4"),
    ({"num_feature_levels": 1}, "num_feature_levels=1 is fewer than the 2 maps"),
    ({"dn_labelbook_size": 6}, "dn_labelbook_size=6 is smaller than num_classes=7"),
    ({"pre_norm": True}, "pre_norm=True"),
    ({"classification": "softmax"}, "classification='softmax'"),
    ({"stage_levels": [[0]]}, "stage_levels"),
    ({"modelname": "dinno"}, "modelname='dinno' is unknown. Did you mean 'dino'"),
    ({"num_classes": "auto"}, "num_classes='auto' takes the classes from a data set"),
])
def test_options_that_make_no_model(build, options, message):
    with pytest.raises(UserError, match=message):
        build(**options)


@pytest.mark.parametrize("num_expansion, small_expand, cross_scale", [
    (None, True, []), (2, True, [1, 3]), (1, True, [3]), (4, True, [0, 1, 2, 3]), (2, False, []),
])
def test_encoder(build, num_expansion, small_expand, cross_scale):
    encoder = build(enc_layers=4, num_expansion=num_expansion, small_expand=small_expand)[0].transformer.encoder
    if num_expansion is None:
        assert type(encoder) is DeformableEncoder
    else:
        assert type(encoder) is InterleavedEncoder
        assert encoder.block_length == 4 // num_expansion and encoder.enc_scale == 2
    assert [i for i, layer in enumerate(encoder.layers) if isinstance(layer, CrossScaleLayer)] == cross_scale


@pytest.mark.parametrize("key_aware, kind", [(True, KeyAwareDeformAttn), (False, MSDeformAttn),
                                             (None, KeyAwareDeformAttn)])
def test_attention_of_encoder_and_decoder(build, key_aware, kind):
    model = build(key_aware=key_aware, enc_n_points=3, dec_n_points=2)[0]
    attentions = [m for m in model.modules() if isinstance(m, DeformableAttention)]
    assert [type(m) for m in attentions] == [kind] * 4
    assert [m.num_points for m in attentions] == [3, 3, 2, 2]


@pytest.mark.parametrize("num_expansion", [None, 1])
def test_checkpointing_options(build, num_expansion):
    model = build(deformable_use_checkpoint=True, num_expansion=num_expansion)[0]
    transformer, features = model.transformer, model.backbone[0]
    assert (transformer.encoder.use_checkpoint, transformer.decoder.use_checkpoint, features.use_checkpoint) == (
        True, True, False)
    model = build(use_checkpoint=True, num_expansion=num_expansion)[0]
    transformer, features = model.transformer, model.backbone[0]
    assert (transformer.encoder.use_checkpoint, transformer.decoder.use_checkpoint, features.use_checkpoint) == (
        False, False, True)


@pytest.mark.parametrize("detach", [True, False])
def test_detached_boxes(build, detach):
    assert build(use_detached_boxes_dec_out=detach)[0].transformer.decoder.detach_boxes is detach


@pytest.mark.parametrize("size, rows", [(None, 8), (7, 8), (20, 21)])
def test_labelbook_size(build, size, rows):
    assert build(dn_labelbook_size=size)[0].label_enc.weight.shape == (rows, 32)


@pytest.mark.parametrize("shared", [True, False])
def test_heads_are_shared_or_not(build, shared):
    model = build(dec_pred_bbox_embed_share=shared, dec_pred_class_embed_share=shared,
                  two_stage_bbox_embed_share=shared, two_stage_class_embed_share=shared)[0]
    assert (model.bbox_embed[0] is model.bbox_embed[1]) is shared
    assert (model.class_embed[0] is model.class_embed[1]) is shared
    assert (model.transformer.enc_out_bbox_embed is model.bbox_embed[0]) is shared
    assert (model.transformer.enc_out_class_embed is model.class_embed[0]) is shared
    assert model.transformer.decoder.bbox_embed is model.bbox_embed


def test_first_predictions(build):
    """Boxes start at their references and every class at the prior of the focal loss."""
    model = build()[0].eval()
    with torch.no_grad():
        out = model([torch.randn(3, 96, 128)])
        for head in [*model.class_embed, model.transformer.enc_out_class_embed]:
            torch.testing.assert_close(head.bias.sigmoid(), torch.full((7,), 0.01))
        for layer in [*out["aux_outputs"], out["interm_outputs"]]:
            # inverse_sigmoid of the decoder clamps at 1e-3
            torch.testing.assert_close(layer["pred_boxes"], out["pred_boxes"], atol=2e-3, rtol=0)


def test_no_backbone_learning_rate_freezes_the_backbone(build):
    frozen, trained = build(lr_backbone=0)[0], build()[0]
    assert not any(p.requires_grad for p in frozen.backbone.parameters())
    assert any(p.requires_grad for p in trained.backbone.parameters())
    assert all(p.requires_grad for name, p in frozen.named_parameters() if not name.startswith("backbone."))


def test_loss_and_postprocess_options(build):
    _, criterion, post = build(set_cost_class=1.0, set_cost_bbox=2, set_cost_giou=3, focal_alpha=0.5, cls_loss_coef=7,
                               bbox_loss_coef=8, giou_loss_coef=9, interm_loss_coef=0.5, no_interm_box_loss=True,
                               num_select=11, nms_iou_threshold=0.6)
    matcher = criterion.matcher
    assert (matcher.cost_class, matcher.cost_bbox, matcher.cost_giou, matcher.classification.alpha) == (1, 2, 3, 0.5)
    assert criterion.classification is matcher.classification
    weights = criterion.weight_dict
    assert [weights[f"loss_{name}_0"] for name in ("ce", "bbox", "giou")] == [7, 8, 9]
    assert [weights[f"loss_{name}_interm"] for name in ("ce", "bbox", "giou")] == [3.5, 0, 0]
    assert "loss_ce_dn" in weights and "loss_ce_dn" not in build(use_dn=False)[1].weight_dict
    assert (post["bbox"].num_select, post["bbox"].nms_iou_threshold) == (11, 0.6)


def test_a_plain_dict_is_a_config(tiny_config):
    assert isinstance(build_model(dict(tiny_config))[0], torch.nn.Module)
