"""MR-2 and AP with ignored regions: against mmdetection's CrowdHumanMetric (3.3.0), the definition, and by hand."""
import dataclasses
import math

import numpy as np
import pytest
from pycocotools.coco import COCO

from datasets.benchmark_facts import HAS_VISIBLE
from datasets.evaluation.arrays import DetectionArrays, GroundTruth
from datasets.evaluation.crowdhuman import (
    FALSE_POSITIVES,
    PersonMatches,
    crowdhuman_stats,
    is_crowdhuman,
    match_persons,
)
from tests.datasets.evaluation.scenes import recorded, scene


@pytest.mark.parametrize("entry, truth, detections", list(recorded("crowdhuman")))
def test_the_numbers_are_those_of_mmdetection(entry, truth, detections):
    assert crowdhuman_stats(truth, detections) == pytest.approx(entry["results"], abs=1e-9)


def overlap(a, b, of_a):
    """IoU of two boxes xyxy, or the share of a that lies in b."""
    sides = [min(a[2 + i], b[2 + i]) - max(a[i], b[i]) for i in (0, 1)]
    shared = max(0, sides[0]) * max(0, sides[1])
    area = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return shared / (area[0] if of_a else area[0] + area[1] - shared)


def by_definition(truth, detections):
    """MR-2 of class 0, one detection after the other."""
    corners = [np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1).clip(0, 250)
               for boxes in (truth.boxes, detections.boxes)]
    taken, hits, wrong = set(), 0, 0
    points = []
    persons = sum(label == 0 and not crowd for label, crowd in zip(truth.label, truth.crowd))
    for i in sorted(range(len(detections.scores)), key=lambda i: -detections.scores[i]):
        if detections.label[i] != 0:
            continue
        theirs = [j for j in range(len(truth.label)) if truth.image[j] == detections.image[i] and truth.label[j] == 0]
        free = {j: overlap(corners[1][i], corners[0][j], False) for j in theirs
                if not truth.crowd[j] and j not in taken}
        best = max(free, key=free.get, default=None)
        if best is not None and free[best] > 0.5:
            taken.add(best)
            hits += 1
        elif any(overlap(corners[1][i], corners[0][j], True) > 0.5 for j in theirs if truth.crowd[j]):
            continue
        else:
            wrong += 1
        points.append((wrong / len(truth.images), 1 - hits / persons))
    misses = [next((miss for rate, miss in points if rate >= allowed), points[-1][1]) for allowed in FALSE_POSITIVES]
    return math.exp(sum(map(math.log, misses)) / 9)


@pytest.mark.parametrize("seed", range(5))
def test_the_miss_rate_is_what_its_definition_says(seed):
    truth, detections = scene(seed, images=20, classes=2, boxes=120, detections=500, crowds=0.2)
    ours = match_persons(truth, detections, 0).miss_rate()
    assert 0.1 < ours < 0.999 and ours == pytest.approx(by_definition(truth, detections), abs=1e-12)


def test_by_hand():
    """Of 4 persons in 10 images the first, third and fifth detection find one."""
    matches = PersonMatches(np.array([True, False, True, False, True]), persons=4, images=10)
    # The first detection with 0.01 .. 0.1 false positives an image is the second, where 3 of 4 are missed; with 0.1778
    # it is the fourth, where 2 are. More are never reached: after the last, 1 is missed.
    assert matches.miss_rate() == pytest.approx((0.75**5 * 0.5 * 0.25**3) ** (1 / 9))
    # Points (1/4, 1), (1/4, 1/2), (1/2, 2/3), (1/2, 1/2), (3/4, 3/5)
    assert matches.average_precision() == pytest.approx((1 / 2 + 2 / 3) / 8 + (1 / 2 + 3 / 5) / 8)


@pytest.mark.parametrize("found, persons, rate, ap", [
    ([], 3, 1.0, 0.0), ([], 0, None, None), ([False], 0, None, None), ([True, True], 2, 0.0, 0.5),
])
def test_nothing_found_and_everything(found, persons, rate, ap):
    matches = PersonMatches(np.array(found, bool), persons, images=5)
    assert matches.miss_rate() == rate and matches.average_precision() == ap


def boxes(*rows):
    return np.array(rows, float).reshape(-1, 4)


def truth_of(*rows, ignored=()):
    count = len(rows)
    ignore = np.isin(np.arange(count), ignored)
    return GroundTruth([1], [1], np.array([[100.0, 100.0]]), np.zeros(count, int), np.zeros(count, int), boxes(*rows),
                       np.ones(count), np.zeros(count, bool), ignore)


def found_in(truth, *rows):
    count = len(rows)
    return match_persons(truth, DetectionArrays(np.zeros(count, int), np.zeros(count, int), boxes(*rows),
                                                np.linspace(1, 0.5, count)), 0).found.tolist()


def test_what_lies_on_an_ignored_region_does_not_count_unless_it_finds_a_person():
    truth = truth_of([10, 10, 20, 20], [0, 0, 60, 60], ignored=[1])
    assert found_in(truth, [12, 10, 20, 20], [30, 30, 10, 10], [30, 30, 10, 10], [58, 58, 20, 20]) == [True, False]
    crowd = dataclasses.replace(truth, crowd=truth.ignore, ignore=truth.crowd)
    assert found_in(crowd, [30, 30, 10, 10], [80, 80, 9, 9]) == [False]
    assert match_persons(crowd, DetectionArrays(*[np.zeros(0, int)] * 2, boxes(), np.zeros(0)), 0).persons == 1


def test_a_detection_takes_the_free_person_with_which_it_overlaps_most():
    truth = truth_of([10, 10, 20, 20], [14, 10, 20, 20])
    assert found_in(truth, [13, 10, 20, 20], [12, 10, 20, 20], [13, 10, 20, 20]) == [True, True, False]


def test_boxes_end_at_the_border_of_the_image():
    assert found_in(truth_of([80, 10, 20, 20]), [80, 10, 200, 20]) == [True]
    assert found_in(truth_of([0, 0, 20, 20]), [-60, -60, 80, 80]) == [True]


def test_classes_count_alike_and_those_without_persons_do_not():
    truth, detections = scene(0, classes=3, crowds=0.1)
    rates = [match_persons(truth, detections, label).miss_rate() for label in range(3)]
    assert rates[2] is None
    assert crowdhuman_stats(truth, detections)["MR-2"] == pytest.approx((rates[0] + rates[1]) / 2)
    empty = dataclasses.replace(truth, label=np.full_like(truth.label, 2), crowd=np.ones_like(truth.crowd))
    assert crowdhuman_stats(empty, detections) == {"MR-2": None, "AP50-CrowdHuman": None}


@pytest.mark.parametrize("dataset, found", [({"info": {HAS_VISIBLE: True}}, True), ({"info": {}}, False), ({}, False)])
def test_what_a_file_of_crowdhuman_is(dataset, found):
    coco = COCO()
    coco.dataset = dataset
    assert is_crowdhuman(coco) is found
