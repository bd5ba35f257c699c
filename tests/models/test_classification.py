"""FocalClassification is tested where it is used: in the matcher, the criterion and the post-processing."""
import math

import pytest
import torch

from models.classification import (
    IOU_RULES,
    ClassMatch,
    FocalClassification,
    IoUAwareClassification,
    SoftmaxClassification,
)
from models.criterion import LossWeights, SetCriterion, weighted_sum
from models.matcher import HungarianMatcher
from models.postprocess import PostProcess
from util.errors import UserError

LOGITS = [[[1.0, -1.0, 0.0], [0.5, 2.0, 3.0]]]  # two classes and "no object"
BOXES = [[[0.5, 0.5, 0.2, 0.4], [0.2, 0.2, 0.1, 0.1]]]
TARGETS = [{"labels": torch.tensor([1]), "boxes": torch.tensor([[0.2, 0.2, 0.1, 0.1]])}]


def softmax(row):
    total = sum(math.exp(x) for x in row)
    return [math.exp(x) / total for x in row]


def outputs():
    return {"pred_logits": torch.tensor(LOGITS), "pred_boxes": torch.tensor(BOXES)}


def criterion(eos_coef=0.1, num_layers=1):
    classification = SoftmaxClassification(eos_coef)
    weights = LossWeights(cls=1.0, bbox=5.0, giou=2.0, interm=None)
    return SetCriterion(HungarianMatcher(1, 5, 2, classification), weights, num_layers, classification, use_dn=False)


@pytest.mark.parametrize("eos_coef", [0.1, 1.0, 0.0])
def test_cross_entropy_is_a_weighted_mean(eos_coef):
    """Query 1 is matched and has weight 1; query 0 is not, and has weight eos_coef."""
    losses = criterion(eos_coef)(outputs(), TARGETS)
    matched, unmatched = -math.log(softmax(LOGITS[0][1])[1]), -math.log(softmax(LOGITS[0][0])[2])
    expected = (matched + eos_coef * unmatched) / (1 + eos_coef)
    assert losses["loss_ce"].item() == pytest.approx(expected, rel=1e-5)
    assert losses["loss_bbox"].item() == pytest.approx(0, abs=1e-6)


def test_more_boxes_do_not_divide_the_cross_entropy():
    """Two images with one object each, or one of them alone."""
    both = {name: x.repeat(2, 1, 1) for name, x in outputs().items()}
    assert criterion()(both, TARGETS * 2)["loss_ce"].item() == pytest.approx(
        criterion()(outputs(), TARGETS)["loss_ce"].item())


@pytest.mark.parametrize("counts, error", [((1, 2), 0.5), ((0, 0), 1.0), ((1, 1), 0.0), ((3, 1), 1.0)])
def test_cardinality_error(counts, error):
    """One query of each image prefers a class."""
    logits = torch.tensor(LOGITS).repeat(2, 1, 1)
    found = SoftmaxClassification().diagnostics(logits, counts)
    assert {name: x.item() for name, x in found.items()} == {"cardinality_error": pytest.approx(error)}


def test_log_has_the_cardinality_error_and_the_loss_does_not():
    loss = criterion(num_layers=2)
    losses = loss(outputs() | {"aux_outputs": [outputs()]}, TARGETS)
    assert losses["cardinality_error"] == 0 and losses["class_error"] == 100
    assert set(loss.weight_dict) == {f"loss_{name}{suffix}" for name in ("ce", "bbox", "giou") for suffix in ("", "_0")}
    assert set(loss.weight_dict) <= set(losses)


def test_no_targets_in_the_batch():
    nothing = [{"labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)}]
    losses = criterion()(outputs(), nothing)
    expected = -sum(math.log(softmax(row)[2]) for row in LOGITS[0]) / 2
    assert losses["loss_ce"].item() == pytest.approx(expected) and losses["loss_bbox"] == losses["loss_giou"] == 0


@pytest.mark.parametrize("num_select", [1, 300])
def test_every_query_is_a_detection(num_select):
    """In the order of the queries, and never "no object"."""
    result, = PostProcess(num_select, classification=SoftmaxClassification())(outputs(), torch.tensor([[100, 200]]))
    assert result["labels"].tolist() == [0, 1]
    assert result["scores"].tolist() == pytest.approx([softmax(LOGITS[0][0])[0], softmax(LOGITS[0][1])[1]])
    torch.testing.assert_close(result["boxes"], torch.tensor([[80.0, 30, 120, 70], [30, 15, 50, 25]]))


def test_number_of_logits():
    assert FocalClassification().num_logits(91) == 91 and SoftmaxClassification().num_logits(91) == 92


# classification that knows IoU

def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def bce(x, target):
    return -target * math.log(sigmoid(x)) - (1 - target) * math.log(1 - sigmoid(x))


X, U = 0.4, 0.7  # a matched logit, and the IoU of its box
P = sigmoid(X)
PAPERS = {  # target and weight of the match, weight of a background logit of probability q
    "vfl": (U, U, lambda q: 0.75 * q**2),
    "ia_bce": (P**0.25 * U**0.75, 1, lambda q: q**2),
    "mal": (U**1.5, 1, lambda q: q**1.5),
    "position": (U, 0.25 * (U - P)**2, lambda q: 0.75 * q**2)}  # the only match of its image


def test_every_rule_has_a_paper():
    assert IOU_RULES.keys() == PAPERS.keys()


@pytest.mark.parametrize("name", PAPERS)
def test_a_match_learns_its_iou_and_the_rest_nothing(name):
    """Two sets, one image, two queries, three classes; the match is another query in each set."""
    logits = torch.tensor([[[[0.1, X, -1.0], [-2.0, 0.3, 1.5]]], [[[-0.5, 0.2, 0.9], [0.0, X, -3.0]]]],
                          dtype=torch.float64, requires_grad=True)
    match = ClassMatch(torch.tensor([[0], [0]]), torch.tensor([[0], [1]]), torch.tensor([[1], [1]]),
                       torch.tensor([[U], [U]], dtype=torch.float64))
    found = IoUAwareClassification(rule=IOU_RULES[name]).loss(logits, match, torch.tensor(2.0))
    target, weight, background = PAPERS[name]
    for loss, rest in zip(found.tolist(), ((0.1, -1.0, -2.0, 0.3, 1.5), (-0.5, 0.2, 0.9, 0.0, -3.0))):
        wanted = weight * bce(X, target) + sum(background(sigmoid(x)) * bce(x, 0) for x in rest)
        assert loss == pytest.approx(wanted / 2, rel=1e-9)

    found.sum().backward()  # weights and targets are constants: weight * (p - target)
    assert logits.grad[0, 0, 0, 1].item() == pytest.approx(weight * (P - target) / 2, rel=1e-9)
    q = sigmoid(1.5)
    assert logits.grad[0, 0, 1, 2].item() == pytest.approx(background(q) * q / 2, rel=1e-9)


def test_positions_are_rescaled_to_the_best_match_of_their_image():
    """Stable-DINO: 0.8 is the best of the first image, whose 0.4 then counts 0.16 / 0.8; 0.5 is alone in the second."""
    logits = torch.tensor([[[[X]] * 2, [[X]] * 2]], dtype=torch.float64)
    match = ClassMatch(torch.tensor([[0, 0, 1]]), torch.tensor([[0, 1, 0]]), torch.zeros(1, 3, dtype=torch.int64),
                       torch.tensor([[0.8, 0.4, 0.5]], dtype=torch.float64))
    found = IoUAwareClassification(rule=IOU_RULES["position"]).loss(logits, match, torch.tensor(1.0)).item()
    wanted = sum(0.25 * (t - P)**2 * bce(X, t) for t in (0.8, 0.2, 0.5)) + 0.75 * P**2 * bce(X, 0)
    assert found == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("iou", [0.0, 1.0])
@pytest.mark.parametrize("logit", [-60.0, 0.0, 60.0])
@pytest.mark.parametrize("name", PAPERS)
def test_extremes_are_finite(name, logit, iou):
    logits = torch.full((1, 1, 2, 2), logit, requires_grad=True)
    match = ClassMatch(torch.tensor([[0]]), torch.tensor([[1]]), torch.tensor([[0]]), torch.tensor([[iou]]))
    loss = IoUAwareClassification(rule=IOU_RULES[name]).loss(logits, match, torch.tensor(1.0))
    loss.backward()
    assert loss.isfinite().all() and logits.grad.isfinite().all()


@pytest.mark.parametrize("name", PAPERS)
def test_without_matches_all_is_background(name):
    logits = torch.tensor([[[[0.2], [-1.0]]]])
    none = torch.zeros(1, 0, dtype=torch.int64)
    loss = IoUAwareClassification(rule=IOU_RULES[name]).loss(
        logits, ClassMatch(none, none, none, torch.zeros(1, 0)), torch.tensor(1.0))
    background = PAPERS[name][2]
    assert loss.item() == pytest.approx(sum(background(sigmoid(x)) * bce(x, 0) for x in (0.2, -1.0)), rel=1e-5)


def test_the_cost_of_a_position_is_focal_at_the_probability_times_the_root_of_the_giou():
    logits, labels = torch.tensor([[[[X, -X]]]]), torch.tensor([[0, 1, 0]])
    giou = torch.tensor([[[[1.0, 0.28, -1.0]]]])
    found = FocalClassification(position_cost=True).cost(logits, labels, giou)[0, 0, 0].tolist()
    for cost, prob in zip(found, (P, sigmoid(-X) * 0.8, 0)):
        wanted = 0.25 * (1 - prob)**2 * -math.log(prob + 1e-8) - 0.75 * prob**2 * -math.log(1 - prob + 1e-8)
        assert cost == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("name", PAPERS)
def test_a_cost_by_the_target_is_what_a_match_adds_to_the_loss(name):
    """Two queries and two targets of one image; the best IoU is the first's."""
    logits = torch.tensor([[[[X, 0.3], [-1.0, 2.0]]]], dtype=torch.float64)
    giou = torch.tensor([[[[U, -0.5], [0.2, 0.6]]]], dtype=torch.float64)
    classification = IoUAwareClassification(rule=IOU_RULES[name], target_cost=True)
    costs = classification.cost(logits, torch.tensor([[0, 1]]), giou)[0, 0]
    target, weight, background = PAPERS[name]  # the first query's with the first target
    assert costs[0, 0].item() == pytest.approx(weight * bce(X, target) - background(P) * bce(X, 0), rel=1e-9)
    none = torch.zeros(1, 0, dtype=torch.int64)
    without = classification.loss(logits[0][None], ClassMatch(none, none, none, torch.zeros(1, 0)), torch.tensor(1.0))
    both = ClassMatch(torch.tensor([[0, 0]]), torch.tensor([[0, 1]]), torch.tensor([[0, 1]]),
                      torch.tensor([[U, 0.6]], dtype=torch.float64))
    added = classification.loss(logits[0][None], both, torch.tensor(1.0)) - without
    assert (costs[0, 0] + costs[1, 1]).item() == pytest.approx(added.item(), rel=1e-6)
    assert costs.isfinite().all()


@pytest.mark.parametrize("options, cost", [
    ({"classification": "mal"}, (False, False)), ({"classification": "position"}, (True, False)),
    ({"classification": "position", "class_cost": "focal"}, (False, False)),
    ({"classification": "mal", "class_cost": "position"}, (True, False)),
    ({"classification": "mal", "class_cost": "target"}, (False, True))])
def test_the_config_chooses_the_cost(build, options, cost):
    classification = build(**options)[1].classification
    assert (classification.position_cost, classification.target_cost) == cost


def test_softmax_has_one_cost(build_sdetr):
    assert build_sdetr("detr_r50", classification="focal", class_cost="position")[1].classification.position_cost
    with pytest.raises(UserError, match="class_cost='position' is not for classification='softmax'"):
        build_sdetr("detr_r50", class_cost="position")


@pytest.mark.parametrize("name", sorted(PAPERS.keys() - {"position"}))
def test_the_cost_of_the_others_is_that_of_the_focal_loss(name):
    generator = torch.Generator().manual_seed(0)
    logits, giou = torch.randn(2, 3, 4, 5, generator=generator), torch.rand(2, 3, 4, 6, generator=generator)
    labels = torch.randint(5, (2, 6), generator=generator)
    found = IoUAwareClassification(rule=IOU_RULES[name]).cost(logits, labels, giou)
    assert torch.equal(found, FocalClassification().cost(logits, labels, giou))


DETECTORS = ("dino", "sdetr_r50", "lite_sdetr_r50", "detr_r50", "deformable", "hybrid")


@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize("name", PAPERS)
def test_every_detector_learns_with_every_rule(build, build_sdetr, build_deformable, make_targets, name, detector):
    hybrid = {"with_box_refine": True, "two_stage": True, "num_queries_one2many": 6, "k_one2many": 2}
    if detector == "dino":
        model, criterion, _ = build(classification=name)
    elif detector in ("deformable", "hybrid"):
        model, criterion, _ = build_deformable(classification=name, **(hybrid if detector == "hybrid" else {}))
    else:
        model, criterion, _ = build_sdetr(detector, classification=name)
    model.train()
    images, targets = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)), make_targets(2, 3)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), 2e-4)
    before, box_losses = [head.detach().clone() for head in model.class_embed.parameters()], []
    for _ in range(8):
        torch.manual_seed(0)  # the same noise in every step
        losses = criterion(model(images, targets), targets)
        optimizer.zero_grad()
        weighted_sum(losses, criterion.weight_dict).backward()
        optimizer.step()
        assert all(loss.isfinite() for loss in losses.values())
        box_losses.append(weighted_sum(losses, {name: weight for name, weight in criterion.weight_dict.items()
                                                if "_ce" not in name and "one2many" not in name}).item())
    # Not the losses of the classes: they rise with what they expect of better boxes.
    assert box_losses[-1] < box_losses[0]
    assert not any(torch.equal(*pair) for pair in zip(before, model.class_embed.parameters()))
