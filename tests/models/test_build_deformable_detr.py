import pytest
import torch

from models.encoders.deformable import DeformableEncoder
from models.encoders.interleaved import InterleavedEncoder
from models.layers.deform_attn import DeformableAttention, KeyAwareDeformAttn, MSDeformAttn
from util.errors import UserError


@pytest.mark.parametrize("options, message", [
    ({"two_stage": True}, "two_stage=True needs with_box_refine=True"),
    ({"mixed_selection": True}, "mixed_selection=True needs two_stage=True"),
    ({"look_forward_twice": True}, "look_forward_twice=True needs with_box_refine=True"),
    ({"with_box_refine": True, "aux_loss": False}, "aux_loss=False leaves the heads"),
    ({"num_queries_one2many": -1}, "num_queries_one2many=-1 must be at least 0"),
    ({"k_one2many": 0}, "k_one2many=0 at least 1"),
    ({"classification": "softmax"}, "for DETR and SDETR, not for modelname='deformable_detr'"),
    ({"num_feature_levels": 1}, "num_feature_levels=1 is fewer than the 2 maps"),
])
def test_options_that_make_no_model(build_deformable, options, message):
    with pytest.raises(UserError, match=message):
        build_deformable(**options)


def test_its_options_are_not_for_dino(build):
    with pytest.raises(UserError, match="two_stage.* are for Deformable DETR, not for DINO"):
        build(two_stage=True)


@pytest.mark.parametrize("num_expansion, encoder, attention", [(None, DeformableEncoder, MSDeformAttn),
                                                               (1, InterleavedEncoder, KeyAwareDeformAttn)])
def test_the_encoder_alone_makes_the_lite_form(build_deformable, num_expansion, encoder, attention):
    model = build_deformable(num_expansion=num_expansion)[0]
    assert type(model.transformer.encoder) is encoder
    assert {type(m) for m in model.modules() if isinstance(m, DeformableAttention)} == {attention}


def test_heads(build_deformable):
    plain, refining = build_deformable()[0], build_deformable(with_box_refine=True)[0]
    two_stage = build_deformable(with_box_refine=True, two_stage=True)[0]
    assert [len(set(model.class_embed)) for model in (plain, refining, two_stage)] == [1, 2, 3]
    assert plain.transformer.decoder.bbox_embed is None
    assert refining.transformer.decoder.bbox_embed is refining.bbox_embed
    first = [model.bbox_embed[0].layers[-1].bias.tolist() for model in (plain, refining, two_stage)]
    assert first == [[0, 0, -2, -2], [0, 0, -2, -2], [0, 0, 0, 0]]


@pytest.mark.parametrize("options, shape", [
    ({}, (12, 64)), ({"num_queries_one2many": 6}, (18, 64)), ({"two_stage": True, "with_box_refine": True}, None),
    ({"two_stage": True, "with_box_refine": True, "mixed_selection": True, "num_queries_one2many": 6}, (18, 32)),
])
def test_learned_queries(build_deformable, options, shape):
    embed = build_deformable(**options)[0].query_embed
    assert (embed if embed is None else tuple(embed.weight.shape)) == shape


def test_weights_of_the_losses(build_deformable):
    criterion = build_deformable(with_box_refine=True, two_stage=True, num_queries_one2many=6, lambda_one2many=0.5,
                                 k_one2many=3)[1]
    base = {"loss_ce": 2.0, "loss_bbox": 5.0, "loss_giou": 2.0}
    expected = {name + suffix: w for name, w in base.items() for suffix in ("", "_0", "_enc")}
    expected |= {name + suffix: w / 2 for name, w in base.items() for suffix in ("_one2many", "_0_one2many")}
    assert criterion.weight_dict == expected and criterion.copies == 3


@pytest.mark.parametrize("options", [{}, {"with_box_refine": True, "two_stage": True, "num_queries_one2many": 6}])
def test_recomputed_activations_change_nothing(build_deformable, make_targets, options):
    def gradients(recompute):
        model, criterion, _ = build_deformable(deformable_use_checkpoint=recompute, **options)
        torch.manual_seed(1)
        targets = make_targets(2)
        losses = criterion(model.train()([torch.randn(3, 64, 64)], targets), targets)
        sum(w * losses[name] for name, w in criterion.weight_dict.items()).backward()
        return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}

    torch.testing.assert_close(gradients(True), gradients(False))
