"""Every detector with a branch of further queries, and with further heads. Matches are tested in the matcher, losses in
the criterion."""
import pytest
import torch

from models.criterion import weighted_sum
from util.errors import UserError

BRANCH = {"one2many": "branch", "num_queries_one2many": 6, "k_one2many": 2}
SHARED = {"one2many": "shared", "k_one2many": 2}
REFINED = {"with_box_refine": True}
TWO_STAGE = REFINED | {"two_stage": True, "mixed_selection": True}
DETECTORS = {"dino": {}, "dino, tokens as content": {"embed_init_tgt": False}, "dino, no denoising": {"use_dn": False},
             "detr_r50": {}, "sdetr_r50": {}, "lite_sdetr_r50": {}, "detr_r50, softmax": {"classification": "softmax"},
             "deformable": {}, "deformable, refined": REFINED, "deformable, two stages": TWO_STAGE}


@pytest.fixture(params=DETECTORS)
def make(request, build, build_sdetr, build_deformable):
    """make(**options): model and criterion of each detector."""
    def make(**options):
        name, options = request.param.partition(",")[0], DETECTORS[request.param] | options
        builders = {"dino": build, "deformable": build_deformable}
        model, criterion, _ = builders[name](**options) if name in builders else build_sdetr(name, **options)
        return model, criterion

    return make


def images():
    return torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("options", [BRANCH, SHARED], ids=["branch", "shared"])
def test_what_detects_is_supervised_as_before(make, make_targets, options):
    """With equal weights, the one-to-one predictions and losses are those of a model without it."""
    plain, criterion = make()
    model, with_more = make(**options)
    state = model.state_dict()
    for name, value in plain.state_dict().items():
        state[name] = torch.cat([value, state[name][len(value):]]) if state[name].shape != value.shape else value
    model.load_state_dict(state)
    targets, expected = make_targets(2, 1), {}
    for one, its_criterion in ((plain, criterion), (model, with_more)):
        one.train()
        torch.manual_seed(0)
        outputs = one(images(), targets)
        losses = its_criterion(outputs, targets)
        expected = expected or losses
        assert ("one2many_outputs" in outputs) is (one is model)
    for name, loss in expected.items():
        torch.testing.assert_close(losses[name], loss, atol=1e-5, rtol=1e-5, msg=name)
    more = {f"loss_{kind}{layer}_one2many" for kind in ("ce", "bbox", "giou")
            for layer in [""] + [f"_{i}" for i in range(len(outputs["aux_outputs"]))]}
    assert set(losses) - set(expected) == more <= with_more.weight_dict.keys()
    assert set(model.eval()(images())) == set(plain.eval()(images()))
    torch.testing.assert_close(model(images())["pred_boxes"], plain(images())["pred_boxes"])


@pytest.mark.parametrize("options", [BRANCH, SHARED], ids=["branch", "shared"])
@pytest.mark.parametrize("counts", [(2, 1), (0, 0)], ids=["objects", "no object"])
def test_every_parameter_learns(make, make_targets, options, counts):
    """Also in a batch without objects: DDP waits for the gradients of all of them."""
    model, criterion = make(**options)
    targets = make_targets(*counts)
    weighted_sum(criterion(model.train()(images(), targets), targets), criterion.weight_dict).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_a_branch_sees_neither_the_detecting_queries_nor_denoising(build, make_targets):
    model = build(**BRANCH)[0].train()

    def predict():
        torch.manual_seed(0)
        with torch.no_grad():
            out = model(images(), make_targets(2, 1))
        return [layers[""]["pred_logits"] for layers in (out["dn_outputs"], {"": out}, out["one2many_outputs"])]

    before = predict()
    learned = model.transformer.tgt_embed.weight.data
    learned[20:] += 1
    assert [torch.allclose(*pair, atol=1e-5) for pair in zip(before, predict())] == [True, True, False]
    learned[20:] -= 1
    learned[:20] += 1
    assert [torch.allclose(*pair, atol=1e-5) for pair in zip(before, predict())] == [False, False, True]
    learned[:20] -= 1
    model.label_enc.weight.data += 1
    assert [torch.allclose(*pair, atol=1e-5) for pair in zip(before, predict())] == [False, True, True]


def test_further_heads_start_as_copies_and_learn_by_themselves(make):
    model, _ = make(**SHARED)
    heads = model.one_to_many
    for own, main in ((heads.class_embed, model.class_embed), (heads.bbox_embed, model.bbox_embed)):
        for a, b in zip(own.parameters(), main.parameters()):
            assert torch.equal(a, b) and a is not b


@pytest.mark.parametrize("options, message", [
    ({"one2many": "branch"}, "one2many='branch' needs num_queries_one2many"),
    ({"one2many": "shared", "num_queries_one2many": 5}, "num_queries_one2many=5 is for one2many='branch', not for 's"),
    ({"one2many": "none", "num_queries_one2many": 5}, "num_queries_one2many=5 is for one2many='branch', not for 'n"),
    ({"one2many": "both"}, "one2many='both' must be"),
])
def test_options_that_make_no_model(build, options, message):
    with pytest.raises(UserError, match=message):
        build(**options)


@pytest.mark.parametrize("options, kind", [({}, "none"), ({"num_queries_one2many": 6}, "branch"), (SHARED, "shared")])
def test_queries_make_a_branch_unless_something_else_is_said(build, options, kind):
    model = build(**options)[0]
    assert (model.one_to_many.num_queries, model.one_to_many.has_heads) == (6 * (kind == "branch"), kind == "shared")
