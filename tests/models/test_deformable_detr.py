import pytest
import torch

from models.structures import FlatFeatures
from util.box_ops import moved

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


def test_the_one_to_many_branch_exists_in_training_alone(build_deformable, make_targets):
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
def test_padding_has_no_say(build_deformable, options):
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


def test_a_point_moves_its_centre_and_leaves_the_size_to_the_head():
    delta = torch.tensor([0.1, -0.2, -1.0, -2.0])
    logits = moved(torch.tensor([0.25, 0.5]), delta, 1e-5)
    torch.testing.assert_close(logits, delta + torch.tensor([0.25, 0.5, 0.5, 0.5]).logit())
