import pytest
import torch

from models.encoders.deformable import DeformableEncoder
from models.encoders.interleaved import InterleavedEncoder
from models.layers.deform_attn import DeformableAttention, KeyAwareDeformAttn, MSDeformAttn
from models.structures import FlatFeatures
from util.errors import UserError

TWO_STAGE = {"with_box_refine": True, "two_stage": True}
HYBRID = TWO_STAGE | {"mixed_selection": True, "look_forward_twice": True, "num_queries_one2many": 6}


def images(*sizes):
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(3, *size, generator=generator) for size in sizes]


@pytest.mark.parametrize("options, extra", [({}, set()), ({"with_box_refine": True}, set()),
                                            (TWO_STAGE, {"enc_outputs"}), (HYBRID, {"enc_outputs"})])
def test_outputs(build_deformable, options, extra):
    model = build_deformable(**options)[0].eval()
    with torch.no_grad():
        out = model(images((64, 96), (80, 64)))
    assert set(out) == {"pred_logits", "pred_boxes", "aux_outputs"} | extra
    for layer in [out, *out["aux_outputs"]]:
        assert layer["pred_logits"].shape == (2, 12, 7) and layer["pred_boxes"].shape == (2, 12, 4)
        assert (0 <= layer["pred_boxes"]).all() and (layer["pred_boxes"] <= 1).all()
    if extra:  # all tokens of the levels with strides 16, 32 and 64
        assert out["enc_outputs"]["pred_logits"].shape == (2, 5 * 6 + 3 * 3 + 2 * 2, 7)


def test_the_one_to_many_branch_exists_in_training_only(build_deformable, make_targets):
    model = build_deformable(**HYBRID)[0]
    out = model.train()(images((128, 128)), make_targets(2))
    assert out["pred_logits"].shape[1] == 12
    assert {name: layer["pred_boxes"].shape for name, layer in out["one2many_outputs"].items()} == {
        "": (1, 6, 4), "_0": (1, 6, 4)}
    assert "one2many_outputs" not in model.eval()(images((128, 128)))


def test_the_branches_do_not_see_each_other(build_deformable):
    model = build_deformable(**HYBRID)[0].train()

    def predict():
        with torch.no_grad():
            out = model(images((128, 128)))
        return out["pred_logits"], out["one2many_outputs"][""]["pred_logits"]

    one, many = predict()
    model.query_embed.weight.data[12:] += 1
    changed_one, changed_many = predict()
    torch.testing.assert_close(changed_one, one)
    assert not torch.allclose(changed_many, many)
    model.query_embed.weight.data[:12] += 1
    again_one, again_many = predict()
    torch.testing.assert_close(again_many, changed_many)
    assert not torch.allclose(again_one, one)


def test_training_and_evaluation_agree_on_the_one_to_one_queries(build_deformable):
    model = build_deformable(**HYBRID)[0]
    with torch.no_grad():
        trained, evaluated = (model.train(mode)(images((128, 128)))["pred_logits"] for mode in (True, False))
    torch.testing.assert_close(trained, evaluated)


@pytest.mark.parametrize("options", [TWO_STAGE, HYBRID])
def test_fewer_tokens_than_queries(build_deformable, make_targets, options):
    model, criterion, post = build_deformable(**options)
    targets = make_targets(2)
    out = model.train()(images((32, 32)), targets)  # 4 + 1 + 1 tokens
    assert out["pred_logits"].shape[1] == 6
    assert all(loss.isfinite() for loss in criterion(out, targets).values())
    assert len(post["bbox"](model.eval()(images((32, 32))), torch.tensor([[32, 32]]))[0]["scores"]) == 10


@pytest.mark.parametrize("options", [{}, {"with_box_refine": True}, TWO_STAGE])
def test_padding_is_ignored(build_deformable, options):
    """An image's result does not depend on the larger image beside it."""
    model = build_deformable(**options)[0].eval()
    small, large = images((64, 64), (64, 128))
    with torch.no_grad():
        alone, batched = model([small]), model([small, large])
        seen = batched["pred_boxes"][0]
    if not options:  # with proposals, padding enters the list that they are chosen from
        torch.testing.assert_close(seen, alone["pred_boxes"][0], rtol=1e-3, atol=1e-3)
    assert seen.isfinite().all()


def test_proposals_are_the_tokens_that_look_most_like_class_0(build_deformable, make_features):
    transformer = build_deformable(**TWO_STAGE)[0].transformer.eval()
    memory: FlatFeatures = make_features([(8, 8), (4, 4), (2, 2)], dim=32)
    with torch.no_grad():
        queries, scores = transformer.queries(memory, None, 5)
    best = scores.logits[0, :, 0].argsort(descending=True)[:5]
    torch.testing.assert_close(queries.box_logits[0], scores.box_logits[0, best])
    assert queries.content.shape == queries.pos.shape == (1, 5, 32)


def test_proposals_get_no_gradient_from_queries(build_deformable, make_features):
    transformer = build_deformable(**TWO_STAGE)[0].transformer
    queries, scores = transformer.queries(make_features([(8, 8), (4, 4), (2, 2)], dim=32), None, 5)
    (queries.content.sum() + queries.pos.sum()).backward()
    assert transformer.pos_trans.weight.grad is not None and transformer.enc_output.weight.grad is None
    assert not queries.box_logits.requires_grad and scores.box_logits.requires_grad


def test_learned_queries_start_at_a_function_of_their_positions(build_deformable, make_features):
    model = build_deformable()[0]
    memory = make_features([(8, 8), (4, 4), (2, 2)], dim=32, valid=[(2, 2), (1, 2)])
    queries, proposals = model.transformer.queries(memory, model.query_embed.weight, 12)
    assert proposals is None and queries.content.shape == (2, 12, 32) and queries.box_logits.shape == (2, 12, 2)
    torch.testing.assert_close(queries.pos[1], model.query_embed.weight[:, :32])
    torch.testing.assert_close(queries.content[0], model.query_embed.weight[:, 32:])
    torch.testing.assert_close(queries.box_logits[0], model.transformer.reference_points(queries.pos[0]))


@pytest.mark.parametrize("options, message", [
    ({"two_stage": True}, "two_stage=True needs with_box_refine=True"),
    ({"mixed_selection": True}, "mixed_selection=True needs two_stage=True"),
    ({"look_forward_twice": True}, "look_forward_twice=True needs with_box_refine=True"),
    ({"with_box_refine": True, "aux_loss": False}, "aux_loss=False leaves the heads"),
    ({"num_queries_one2many": -1}, "num_queries_one2many=-1 must be at least 0"),
    ({"k_one2many": 0}, "k_one2many=0 must be at least 1"),
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
def test_only_the_encoder_makes_the_lite_form(build_deformable, num_expansion, encoder, attention):
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
