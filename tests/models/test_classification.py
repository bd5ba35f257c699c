"""FocalClassification is tested where it is used: in the matcher, the criterion and the post-processing."""
import math

import pytest
import torch

from models.classification import FocalClassification, SoftmaxClassification
from models.criterion import LossWeights, SetCriterion
from models.matcher import HungarianMatcher
from models.postprocess import PostProcess

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
