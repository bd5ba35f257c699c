import math

import pytest
import torch

import models.criterion
from models.classification import FocalClassification
from models.criterion import LossWeights, SetCriterion, weighted_sum
from models.denoising import DenoisingMeta
from models.matcher import HungarianMatcher, OneToManyMatcher

BASE = ("loss_ce", "loss_bbox", "loss_giou")


def make_criterion(num_layers=1, use_dn=True, alpha=0.25, aux_loss=True, **weights):
    weights = LossWeights(**{"cls": 1.0, "bbox": 5.0, "giou": 2.0, "interm": 1.0} | weights)
    focal = FocalClassification(alpha)
    return SetCriterion(HungarianMatcher(2, 5, 2, focal), weights, num_layers, focal, use_dn, aux_loss)


def prediction(logits, boxes):
    return {"pred_logits": torch.tensor(logits, dtype=torch.float64, requires_grad=True),
            "pred_boxes": torch.tensor(boxes, dtype=torch.float64, requires_grad=True)}


def random_prediction(batch, queries, classes=3):
    return {"pred_logits": torch.randn(batch, queries, classes, requires_grad=True),
            "pred_boxes": (torch.rand(batch, queries, 4) * 0.4 + 0.2).requires_grad_()}


def random_outputs(counts, num_layers=2, groups=3):
    torch.manual_seed(0)
    outputs = random_prediction(len(counts), 5)
    outputs["aux_outputs"] = [random_prediction(len(counts), 5) for _ in range(num_layers - 1)]
    outputs["interm_outputs"] = random_prediction(len(counts), 5)
    if any(counts):
        outputs["dn_meta"] = DenoisingMeta(groups, 2 * max(counts))
        names = [f"_{i}" for i in range(num_layers - 1)] + [""]
        outputs["dn_outputs"] = {name: random_prediction(len(counts), groups * 2 * max(counts)) for name in names}
    return outputs


def target(labels, boxes):
    return {"labels": torch.tensor(labels, dtype=torch.int64),
            "boxes": torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4)}


def focal(logit, positive, alpha=0.25):
    p = 1 / (1 + math.exp(-logit))
    return -alpha * (1 - p)**2 * math.log(p) if positive else -(1 - alpha) * p**2 * math.log(1 - p)


# One image, two queries, three classes; one object of class 2 that equals query 1 but for its width.
LOGITS = [[[-1.0, 0.5, -2.0], [0.2, -0.7, 1.5]]]
BOXES = [[[0.8, 0.8, 0.2, 0.2], [0.4, 0.4, 0.2, 0.2]]]
TARGETS = [target([2], [[0.4, 0.4, 0.4, 0.2]])]


def hand_outputs():
    return prediction(LOGITS, BOXES) | {"interm_outputs": prediction(LOGITS, BOXES)}


@pytest.mark.parametrize("alpha", [0.25, 0.6])
def test_losses_of_one_object(alpha):
    losses = make_criterion(use_dn=False, alpha=alpha)(hand_outputs(), TARGETS)
    expected = sum(focal(logit, (query, label) == (1, 2), alpha)
                   for query, row in enumerate(LOGITS[0]) for label, logit in enumerate(row))
    for suffix in ("", "_interm"):
        assert losses[f"loss_ce{suffix}"].item() == pytest.approx(expected)
        assert losses[f"loss_bbox{suffix}"].item() == pytest.approx(0.2)
        assert losses[f"loss_giou{suffix}"].item() == pytest.approx(0.5, abs=1e-5)
    assert losses["loss_xy"].item() == pytest.approx(0, abs=1e-9) and losses["loss_hw"].item() == pytest.approx(0.2)
    assert losses["class_error"].item() == 0


def test_giou_of_boxes_apart():
    outputs = prediction([[[0.0]]], [[[0.2, 0.5, 0.2, 0.2]]])
    outputs["interm_outputs"] = dict(outputs)
    losses = make_criterion(use_dn=False)(outputs, [target([0], [[0.8, 0.5, 0.2, 0.2]])])
    assert losses["loss_giou"].item() == pytest.approx(1 + (0.16 - 0.08) / 0.16, abs=1e-4)


def test_class_error():
    outputs = prediction([[[3.0, 0.0], [3.0, 0.0]]], [[[0.2, 0.2, 0.2, 0.2], [0.7, 0.7, 0.2, 0.2]]])
    outputs["interm_outputs"] = dict(outputs)
    targets = [target([0, 1], [[0.2, 0.2, 0.2, 0.2], [0.7, 0.7, 0.2, 0.2]])]
    assert make_criterion(use_dn=False)(outputs, targets)["class_error"].item() == 50


def test_losses_are_sums_over_the_batch_by_its_number_of_boxes():
    """A batch of images counts like the sum of its images."""
    criterion, counts = make_criterion(use_dn=False), (1, 3, 0)
    outputs = random_outputs(counts, num_layers=1)
    targets = [target([1] * n, torch.rand(n, 4).tolist()) for n in counts]
    total = criterion(outputs, targets)
    for name in BASE:
        alone = 0
        for i, n in enumerate(counts):
            image = {key: outputs[key][i:i + 1] for key in ("pred_logits", "pred_boxes")}
            image["interm_outputs"] = {key: x[i:i + 1] for key, x in outputs["interm_outputs"].items()}
            alone += criterion(image, targets[i:i + 1])[name].item() * max(n, 1)
        assert total[name].item() == pytest.approx(alone / 4, rel=1e-5)


def test_number_of_boxes_is_the_mean_over_the_ranks(monkeypatch):
    criterion = make_criterion(use_dn=False)
    alone = criterion(hand_outputs(), TARGETS)
    monkeypatch.setattr(models.criterion, "all_reduce_mean", lambda x: x * 0 + 2.5)
    shared = criterion(hand_outputs(), TARGETS)
    for name in criterion.weight_dict:
        assert shared[name].item() == pytest.approx(alone[name].item() / 2.5)


@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("aux_loss", [True, False])
@pytest.mark.parametrize("use_dn", [True, False])
def test_weight_names(num_layers, aux_loss, use_dn):
    weights = make_criterion(num_layers, use_dn, aux_loss=aux_loss).weight_dict
    layers = ["", "_0", "_1"] if aux_loss and num_layers == 3 else [""]
    suffixes = [*layers, *([f"_dn{layer}" for layer in layers] if use_dn else []), "_interm"]
    assert weights == {name + suffix: weight for suffix in suffixes
                       for name, weight in zip(BASE, (1.0, 5.0, 2.0), strict=True)}


def test_weights_of_the_proposals():
    weights = make_criterion(interm=0.5).weight_dict
    assert [weights[f"{name}_interm"] for name in BASE] == [0.5, 2.5, 1.0]
    assert [weights[name] for name in BASE] == [1.0, 5.0, 2.0]
    weights = make_criterion(interm=0.5, interm_boxes=False).weight_dict
    assert [weights[f"{name}_interm"] for name in BASE] == [0.5, 0.0, 0.0]


@pytest.mark.parametrize("use_dn", [True, False])
@pytest.mark.parametrize("counts", [(2, 1), (0, 1), (0, 0)])
def test_names_are_the_same_for_every_batch(counts, use_dn):
    """Ranks add up their losses by name."""
    criterion, outputs = make_criterion(2, use_dn), random_outputs(counts)
    if not use_dn:
        outputs = {name: x for name, x in outputs.items() if not name.startswith("dn_")}
    losses = criterion(outputs, [target([0] * n, torch.rand(n, 4).tolist()) for n in counts])
    assert set(losses) == set(criterion.weight_dict) | {"class_error", "loss_xy", "loss_hw", "non_finite_costs"}
    assert all(loss.isfinite() and loss.shape == () for loss in losses.values())


def test_batch_without_objects():
    """Every query is background, and the box losses are zero but have a gradient."""
    criterion, outputs = make_criterion(), hand_outputs()
    losses = criterion(outputs, [target([], [])])
    expected = sum(focal(logit, False) for row in LOGITS[0] for logit in row)
    assert losses["loss_ce"].item() == pytest.approx(expected)
    assert all(losses[name].item() == 0 for name in ("loss_bbox", "loss_giou", "class_error", "loss_xy", "loss_hw"))
    assert all(losses[f"{name}_dn"].item() == 0 for name in BASE)
    sum(losses.values()).backward()
    assert outputs["pred_logits"].grad.all() and outputs["pred_boxes"].grad is not None
    assert not outputs["pred_boxes"].grad.any()


def test_denoising_queries_are_matched_to_their_own_targets():
    """Two groups over images of two and one objects: positives first, then negatives and padding as background."""
    counts, boxes = (2, 1), torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.6, 0.6, 0.3, 0.3], [0.5, 0.4, 0.2, 0.4]])
    targets = [target([0, 1], boxes[:2].tolist()), target([2], boxes[2:].tolist())]
    outputs = random_outputs(counts, num_layers=1, groups=2)
    noised = outputs["dn_outputs"][""]
    losses = make_criterion()(outputs, targets)

    positives = {(0, 0): 0, (0, 1): 1, (0, 4): 0, (0, 5): 1, (1, 0): 2, (1, 4): 2}  # (image, query): object = label
    shape = noised["pred_logits"].shape
    ce = sum(focal(noised["pred_logits"][b, q, c].item(), positives.get((b, q)) == c)
             for b in range(shape[0]) for q in range(shape[1]) for c in range(shape[2]))
    l1 = sum((noised["pred_boxes"][place] - boxes[i]).abs().sum().item() for place, i in positives.items())
    assert losses["loss_ce_dn"].item() == pytest.approx(ce / (3 * 2), rel=1e-4)  # 3 boxes, 2 groups
    assert losses["loss_bbox_dn"].item() == pytest.approx(l1 / (3 * 2), rel=1e-4)


def test_denoising_loss_does_not_grow_with_the_groups():
    outputs, targets = random_outputs((2,), num_layers=1, groups=1), [target([0, 1], torch.rand(2, 4).tolist())]
    once = make_criterion()(outputs, targets)
    outputs["dn_meta"] = DenoisingMeta(4, 4)
    outputs["dn_outputs"] = {"": {name: x.repeat(1, 4, 1) for name, x in outputs["dn_outputs"][""].items()}}
    often = make_criterion()(outputs, targets)
    for name in BASE:
        torch.testing.assert_close(often[f"{name}_dn"], once[f"{name}_dn"])


def test_each_layer_has_its_own_losses():
    criterion, counts = make_criterion(3), (2, 1)
    outputs = random_outputs(counts, num_layers=3)
    targets = [target([0] * n, torch.rand(n, 4).tolist()) for n in counts]
    losses = criterion(outputs, targets)
    for suffix, layer in {"_0": outputs["aux_outputs"][0], "_1": outputs["aux_outputs"][1],
                          "_interm": outputs["interm_outputs"]}.items():
        alone = make_criterion(use_dn=False)(layer | {"interm_outputs": layer}, targets)
        for name in BASE:
            torch.testing.assert_close(losses[name + suffix], alone[name])
    for suffix in ("", "_0", "_1"):
        dn_only = random_outputs(counts, num_layers=1)
        dn_only["dn_outputs"] = {"": outputs["dn_outputs"][suffix]}
        alone = make_criterion()(dn_only, targets)
        for name in BASE:
            torch.testing.assert_close(losses[f"{name}_dn{suffix}"], alone[f"{name}_dn"])


def test_more_objects_than_queries():
    outputs = random_outputs((8,), num_layers=1)
    losses = make_criterion()(outputs, [target([0] * 8, torch.rand(8, 4).tolist())])
    assert all(loss.isfinite() for loss in losses.values())


def test_tokens_are_matched_to_all_targets_as_one_class():
    criterion, outputs = make_criterion(use_dn=False, interm=None, enc=0.5), hand_outputs()
    outputs = {name: outputs[name] for name in ("pred_logits", "pred_boxes")}
    losses = criterion(outputs | {"enc_outputs": prediction(LOGITS, BOXES)}, TARGETS)
    as_class_0 = make_criterion(use_dn=False, interm=None)(outputs, [target([0], [[0.4, 0.4, 0.4, 0.2]])])
    assert {name: losses[f"{name}_enc"] for name in BASE} == {name: as_class_0[name] for name in BASE}
    assert losses["loss_ce_enc"] != losses["loss_ce"]
    assert {name: criterion.weight_dict[f"{name}_enc"] for name in BASE} == {
        "loss_ce": 0.5, "loss_bbox": 2.5, "loss_giou": 1.0}


def test_the_one_to_many_branch_finds_every_object_several_times():
    """Two copies of one object take both queries, and each loss is a mean over the copies."""
    matcher, weights = HungarianMatcher(2, 5, 2), LossWeights(1.0, 5.0, 2.0, interm=None, one2many=2.0)
    criterion = SetCriterion(matcher, weights, 1, FocalClassification(), use_dn=False, copies=2)
    outputs = prediction(LOGITS, BOXES) | {"one2many_outputs": {"": prediction(LOGITS, BOXES)}}
    losses = criterion(outputs, TARGETS)
    l1 = (abs(0.8 - 0.4) * 2 + abs(0.2 - 0.4) + 0) + 0.2  # query 0, then query 1
    assert losses["loss_bbox_one2many"].item() == pytest.approx(l1 / 2)
    both = sum(focal(logit, c == 2) for query in LOGITS[0] for c, logit in enumerate(query))
    assert losses["loss_ce_one2many"].item() == pytest.approx(both / 2)
    assert criterion.weight_dict["loss_bbox_one2many"] == 10.0


def test_further_heads_learn_every_query_that_is_near():
    """Both queries lie on the first object, and none on the second, which a one-to-one match has to give a query. In
    the first layer neither is near: the first object takes the one that is its best."""
    boxes = [[[0.4, 0.4, 0.4, 0.2], [0.4, 0.4, 0.4, 0.25]]]
    outputs = prediction(LOGITS, BOXES) | {"one2many_outputs": {
        "_0": prediction(LOGITS, [[[0.9, 0.9, 0.1, 0.1]] * 2]), "": prediction(LOGITS, boxes)}}
    criterion = SetCriterion(HungarianMatcher(2, 5, 2), LossWeights(1.0, 5.0, 2.0, one2many=0.5), 2,
                             FocalClassification(), use_dn=False, copies=6, shared=OneToManyMatcher(6))
    losses = criterion(outputs, [target([2, 0], [[0.4, 0.4, 0.4, 0.2], [0.8, 0.2, 0.1, 0.1]])])
    assert losses["loss_bbox_one2many"].item() == pytest.approx(0.05 / 2)  # of two objects, however often each is found
    assert losses["loss_giou_one2many"].item() == pytest.approx(0.2 / 2)
    both = sum(focal(logit, c == 2) for query in LOGITS[0] for c, logit in enumerate(query))
    assert losses["loss_ce_one2many"].item() == pytest.approx(both / 2)
    assert losses["loss_bbox_0_one2many"].item() == pytest.approx((0.5 + 0.5 + 0.3 + 0.1) / 2)
    one = sum(focal(logit, (i, c) == (1, 2)) for i, query in enumerate(LOGITS[0]) for c, logit in enumerate(query))
    assert losses["loss_ce_0_one2many"].item() == pytest.approx(one / 2)
    assert criterion.weight_dict["loss_bbox_0_one2many"] == 2.5


def test_layers_and_denoising_are_computed_side_by_side(count_kernels):
    """Five more layers cost a few views and sums, not the kernels of their losses."""
    one, six = (count_kernels(make_criterion(num_layers=n), random_outputs((2, 1), num_layers=n),
                              [target([1] * 2, torch.rand(2, 4).tolist()), target([0], torch.rand(1, 4).tolist())])
                for n in (1, 6))
    assert six < 1.4 * one


def test_weighted_sum():
    losses = {"a": torch.tensor(1.0), "b": torch.tensor(2.0), "c": torch.tensor(4.0), "only logged": torch.tensor(8.0)}
    assert weighted_sum(losses, {"a": 1.0, "b": 0.5, "c": 0.5, "absent": 3.0}) == 4
