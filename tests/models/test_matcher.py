import itertools
import math

import pytest
import torch

from models.classification import IOU_RULES, FocalClassification, IoUAwareClassification, SoftmaxClassification
from models.matcher import HungarianMatcher, OneToManyMatcher, _name

CLASSES = 3


def random_boxes(generator, *size):
    return torch.rand(*size, 4, generator=generator, dtype=torch.float64) * 0.4 + 0.1


def make_outputs(batch, queries, sets=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [{"pred_logits": 2 * torch.randn(batch, queries, CLASSES, generator=generator, dtype=torch.float64),
             "pred_boxes": random_boxes(generator, batch, queries)} for _ in range(sets)]


def make_targets(*counts, first_id=None, seed=1):
    generator = torch.Generator().manual_seed(seed)
    targets = [{"labels": torch.randint(CLASSES, (n,), generator=generator), "boxes": random_boxes(generator, n)}
               for n in counts]
    if first_id is not None:
        for i, target in enumerate(targets):
            target["image_id"] = first_id + i
    return targets


def giou(a, b):
    (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = (
        (x - w / 2, y - h / 2, x + w / 2, y + h / 2) for x, y, w, h in (a, b))
    inter = max(0, min(ax1, bx1) - max(ax0, bx0)) * max(0, min(ay1, by1) - max(ay0, by0))
    union = a[2] * a[3] + b[2] * b[3] - inter
    hull = (max(ax1, bx1) - min(ax0, bx0)) * (max(ay1, by1) - min(ay0, by0))
    return inter / union - (hull - union) / hull


def cost(matcher, logits, box, label, wanted):
    p = 1 / (1 + math.exp(-logits[label]))
    alpha = matcher.classification.alpha
    focal = -alpha * (1 - p)**2 * math.log(p) + (1 - alpha) * p**2 * math.log(1 - p)
    l1 = sum(abs(x - y) for x, y in zip(box, wanted, strict=True))
    return matcher.cost_class * focal + matcher.cost_bbox * l1 - matcher.cost_giou * giou(box, wanted)


def cost_table(matcher, outputs, target, image):
    """Cost of each query (row) and target (column) of an image."""
    logits, boxes = (outputs[name][image].tolist() for name in ("pred_logits", "pred_boxes"))
    wanted = list(zip(target["labels"].tolist(), target["boxes"].tolist(), strict=True))
    return [[cost(matcher, *query, *one) for one in wanted] for query in zip(logits, boxes, strict=True)]


def least_cost(table):
    """Of all the ways to give every target a query of its own, or every query a target where there are fewer."""
    if len(table) < len(table[0]):
        table = list(zip(*table, strict=True))
    return min(sum(table[q][t] for t, q in enumerate(chosen))
               for chosen in itertools.permutations(range(len(table)), len(table[0])))


def pairs_of(match, image, first_target=0):
    """The (query, target of the image) in [3, A]."""
    return [(q, t - first_target) for i, q, t in match.T.tolist() if i == image]


def assert_best(matcher, pairs, outputs, target, image):
    table = cost_table(matcher, outputs, target, image)
    for side in zip(*pairs, strict=True):
        assert len(set(side)) == len(side) == min(len(table), len(table[0]))
    assert sum(table[q][t] for q, t in pairs) == pytest.approx(least_cost(table))


@pytest.mark.parametrize("weights", [(2, 5, 2), (1, 0, 0), (0, 1, 0), (0, 0, 1)])
@pytest.mark.parametrize("counts", [(2, 3), (4, 1), (1, 6)])
def test_equals_brute_force(weights, counts):
    """Several prediction sets and images, and as many or more targets than the 4 queries."""
    matcher = HungarianMatcher(*weights)
    outputs, targets = make_outputs(2, 4, sets=3), make_targets(*counts)
    matches = matcher(outputs, targets).indices
    assert matches.shape == (3, 3, sum(min(n, 4) for n in counts)) and matches.dtype == torch.int64
    for match, output in zip(matches, outputs, strict=True):
        for image, first_target in enumerate((0, counts[0])):
            assert_best(matcher, pairs_of(match, image, first_target), output, targets[image], image)


@pytest.mark.parametrize("alpha", [0.25, 0.9])
def test_class_cost_uses_focal_alpha(alpha):
    matcher = HungarianMatcher(1, 1, 0, FocalClassification(alpha))
    outputs, targets = make_outputs(1, 4), make_targets(3)
    assert_best(matcher, pairs_of(matcher(outputs, targets).indices[0], 0), outputs[0], targets[0], 0)


def test_softmax_class_cost():
    """Query 1 has the greatest logit of class 0, query 2 the greatest probability: its other logits are small."""
    outputs = [{"pred_logits": torch.tensor([[[0.0, 0.0, 0.0], [3.0, 5.0, 0.0], [2.0, -4.0, -4.0]]]),
                "pred_boxes": torch.full((1, 3, 4), 0.3)}]
    targets = [{"labels": torch.tensor([0]), "boxes": torch.full((1, 4), 0.3)}]
    match, = HungarianMatcher(1, 5, 2, SoftmaxClassification())(outputs, targets).indices
    assert match.tolist() == [[0], [2], [0]]
    match, = HungarianMatcher(1, 5, 2)(outputs, targets).indices
    assert match.tolist() == [[0], [1], [0]]


def test_images_without_targets():
    outputs, targets = make_outputs(3, 4), make_targets(0, 2, 0)
    match, = HungarianMatcher(2, 5, 2)(outputs, targets).indices
    assert match[0].tolist() == [1, 1] and sorted(match[2].tolist()) == [0, 1]
    assert HungarianMatcher(2, 5, 2)(outputs, make_targets(0, 0, 0)).indices.shape == (1, 3, 0)


@pytest.mark.parametrize("name, value", [("pred_logits", math.nan), ("pred_boxes", math.nan),
                                         ("pred_boxes", math.inf), ("pred_boxes", -math.inf)])
@pytest.mark.parametrize("where", [slice(None), slice(0, 1)], ids=["everywhere", "one query"])
def test_broken_predictions_are_reported_and_survived(caplog, name, value, where):
    matcher, targets = HungarianMatcher(2, 5, 2), make_targets(2, 2, first_id=40)
    outputs = make_outputs(2, 4)
    sound = pairs_of(matcher(outputs, targets).indices[0], image=0)
    outputs[0][name][1, where] = value
    matching = matcher(outputs, targets)
    match, = matching.indices
    assert matching.non_finite == 1
    record, = caplog.records
    assert record.levelname == "WARNING" and "[41]" in record.getMessage()
    assert pairs_of(match, image=0) == sound
    queries, found = zip(*pairs_of(match, image=1, first_target=2), strict=True)
    assert set(found) == {0, 1} and len(set(queries)) == 2


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_infinite_logits_have_finite_costs(caplog, value):
    outputs = make_outputs(1, 4)
    outputs[0]["pred_logits"][0, 0] = value
    match, = HungarianMatcher(2, 0, 0)(outputs, make_targets(2)).indices
    assert not caplog.records
    assert (0 in match[1]) == (value > 0)


def test_broken_queries_are_avoided():
    outputs, targets = make_outputs(1, 4), make_targets(3)
    outputs[0]["pred_logits"][0, 2] = math.nan
    match, = HungarianMatcher(2, 5, 2)(outputs, targets).indices
    assert sorted(match[1].tolist()) == [0, 1, 3]


def test_broken_targets_are_reported(caplog):
    outputs, targets = make_outputs(1, 4), make_targets(2, first_id=7)
    targets[0]["boxes"][0, 0] = math.nan
    assert HungarianMatcher(2, 5, 2)(outputs, targets).indices.shape == (1, 3, 2)
    assert "[7]" in caplog.text


def test_report_without_image_ids(caplog):
    outputs = make_outputs(2, 4)
    outputs[0]["pred_boxes"][1] = math.nan
    HungarianMatcher(2, 5, 2)(outputs, make_targets(1, 1))
    assert "batch index 1" in caplog.text


@pytest.mark.parametrize("image_id, told", [(torch.tensor([139]), "[139]"), ("img_139", "['img_139']")])
def test_image_id_may_be_a_tensor_or_a_text(caplog, image_id, told):
    outputs, targets = make_outputs(1, 4), make_targets(1)
    targets[0]["image_id"] = image_id
    outputs[0]["pred_boxes"][:] = math.nan
    HungarianMatcher(2, 5, 2)(outputs, targets)
    assert told in caplog.text


def test_sound_predictions_are_not_reported(caplog):
    assert HungarianMatcher(2, 5, 2)(make_outputs(2, 4), make_targets(2, 0)).non_finite == 0
    assert not caplog.records


def test_boxes_of_another_precision():
    outputs = [{name: x.float() for name, x in make_outputs(1, 4)[0].items()}]
    targets = make_targets(3)
    expected = HungarianMatcher(2, 5, 2)(make_outputs(1, 4), targets).indices
    assert torch.equal(HungarianMatcher(2, 5, 2)(outputs, targets).indices, expected)


def test_no_gradient():
    outputs = make_outputs(1, 4)
    outputs[0]["pred_boxes"].requires_grad_()
    assert not HungarianMatcher(2, 5, 2)(outputs, make_targets(2)).indices.requires_grad


def test_as_many_kernels_for_many_images_as_for_one(count_kernels):
    """On a GPU each of them costs as much time as the work of an image."""
    matcher = HungarianMatcher(2, 5, 2)
    alone, many = (count_kernels(matcher, make_outputs(batch, 4, sets=3), make_targets(*[2] * batch))
                   for batch in (1, 16))
    assert 0 < many == alone


@pytest.mark.parametrize("image_id, name", [(3, 3), ("img_003", "img_003"), (None, "batch index 0")])
def test_an_image_is_named_by_its_id_of_any_kind(image_id, name):
    assert _name([{} if image_id is None else {"image_id": image_id}], 0) == name


def one_to_many(boxes, logits, *targets, most=6):
    """The (image, query, target) triples of a match, in order."""
    outputs = {"pred_boxes": torch.tensor(boxes), "pred_logits": torch.tensor(logits)}
    found = OneToManyMatcher(most)(outputs, [{"labels": torch.tensor(labels, dtype=torch.int64),
                                             "boxes": torch.tensor(boxes).reshape(-1, 4)}
                                            for labels, boxes in targets])
    return sorted(tuple(match) for match in found.T.tolist())


SQUARE = [0.5, 0.5, 0.2, 0.2]
NARROW = [0.5, 0.5, 0.1, 0.2]  # half of it


def test_one_to_many_takes_queries_by_probability_and_iou():
    """0.3 * p + 0.7 * IoU: 0.35 + 0.3 p for the narrow box, which needs a p of a sixth to reach 0.4."""
    low, high = math.log(0.16 / 0.84), math.log(0.17 / 0.83)
    logits = [[[0.0, 0.0], [9.0, low], [9.0, high], [9.0, 9.0]]]
    boxes = [[SQUARE, NARROW, NARROW, [0.9, 0.9, 0.1, 0.1]]]
    assert one_to_many(boxes, logits, ([1], [SQUARE])) == [(0, 0, 0), (0, 2, 0)]


def test_one_to_many_finds_something_for_a_target_that_no_query_reaches():
    """The best query of a target counts for the target that it suits best, below the threshold too."""
    far = [[0.1, 0.1, 0.1, 0.1]] * 3
    logits = [[[0.0, -1.0], [1.0, -2.0], [-3.0, -3.0]]]
    assert one_to_many([far], logits, ([0], [SQUARE])) == [(0, 1, 0)]
    assert one_to_many([far], logits, ([1], [SQUARE])) == [(0, 0, 0)]
    # Query 0 is the best of the target of class 1, but belongs to that of class 0, whose best is query 1.
    assert one_to_many([far], logits, ([0, 1], [SQUARE, NARROW])) == [(0, 0, 0), (0, 1, 0)]


def test_one_to_many_takes_the_best_where_there_are_too_many():
    boxes = [[[0.5, 0.5, 0.2 - 0.01 * i, 0.2] for i in (5, 1, 0, 4, 2)]]
    logits = [[[0.0]] * 5]
    assert one_to_many(boxes, logits, ([0], [SQUARE]), most=2) == [(0, 1, 0), (0, 2, 0)]


def test_a_query_that_several_targets_want_goes_to_the_best():
    """Of two images, the first with one target, so that the second's are counted from 1."""
    boxes, logits = [[SQUARE, NARROW]] * 2, [[[0.0], [0.0]]] * 2
    found = one_to_many(boxes, logits, ([0], [SQUARE]), ([0, 0], [NARROW, SQUARE]))
    assert found == [(0, 0, 0), (0, 1, 0), (1, 0, 2), (1, 1, 1)]


def test_one_to_many_without_targets():
    assert one_to_many([[SQUARE]] * 2, [[[0.0]]] * 2, ([], []), ([], [])) == []
    assert one_to_many([[SQUARE]] * 2, [[[0.0]]] * 2, ([], []), ([0], [SQUARE])) == [(1, 0, 0)]


def test_a_cost_by_the_best_box_of_an_image_knows_no_other_image():
    """The second image has fewer targets than the first, whose first lies exactly on its query."""
    class Recorded(FocalClassification):
        def cost(self, logits, labels, giou):
            self.best = giou.amax((2, 3))
            return super().cost(logits, labels, giou)

    classification = Recorded()
    outputs = {"pred_boxes": torch.tensor([[SQUARE]] * 2), "pred_logits": torch.zeros(2, 1, 1)}
    HungarianMatcher(2, 5, 2, classification)([outputs], [
        {"labels": torch.zeros(n, dtype=torch.int64), "boxes": torch.tensor(boxes)}
        for n, boxes in ((2, [SQUARE, SQUARE]), (1, [NARROW]))])
    torch.testing.assert_close(classification.best, torch.tensor([[1.0], [0.5]]))


@pytest.mark.parametrize("rule", IOU_RULES)
def test_without_queries_nothing_is_matched(rule):
    """Where an image has fewer tokens than queries, a one-to-many branch has none."""
    matcher = HungarianMatcher(2, 5, 2, IoUAwareClassification(rule=IOU_RULES[rule], target_cost=True))
    outputs = [{"pred_logits": torch.zeros(1, 0, 3), "pred_boxes": torch.zeros(1, 0, 4)}]
    assert matcher(outputs, [{"labels": torch.tensor([1]), "boxes": torch.tensor([SQUARE])}]
                   ).indices.shape == (1, 3, 0)
