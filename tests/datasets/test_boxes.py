"""The rules for boxes, on arrays; tests/datasets/test_annotations.py has them on annotations."""
import numpy as np
import torch

from datasets.boxes import corners, cut, faults, likely_areas, reaching_over

SIZES = np.full((6, 2), (100.0, 80.0))
BOXES = np.array([(10, 10, 20, 20), (-10, 70, 30, 30), (200, 10, 5, 5), (90, 10, 10.05, 20), (10, 10, 0, 5),
                  (float("nan"), 1, 2, 3)])


def test_boxes_are_clipped_in_the_precision_of_the_training():
    found = corners(BOXES, SIZES)
    assert found.dtype == torch.float32 and found[:2].tolist() == [[10, 10, 30, 30], [0, 70, 20, 80]]
    assert corners(BOXES[:0], SIZES[:0]).shape == (0, 4)


def test_each_useless_box_has_one_fault():
    assert {kind: np.flatnonzero(found).tolist() for kind, found in faults(BOXES, SIZES).items()} == {
        "not_finite": [5], "empty": [4], "outside": [2]}


def test_boxes_are_cut_with_their_areas():
    usable = BOXES[[0, 1, 3]]
    boxes, areas = cut(usable, np.array([150.0, 900, 150]), SIZES[:3])
    assert boxes.tolist() == [[10, 10, 20, 20], [0, 70, 20, 10], [90, 10, 10, 20]]
    assert areas.tolist() == [150, 200, 150]
    assert reaching_over(usable, SIZES[:3]).tolist() == [False, True, False]
    assert reaching_over(usable, SIZES[:3], tolerance=0).tolist() == [False, True, True]


def test_areas_that_cannot_be_those_of_the_boxes():
    boxes = np.array([(0, 0, 10.0, 10), (0, 0, 20, 20)])
    every = np.ones(2, bool)
    assert likely_areas(np.array([100.0, 150]), boxes, every).tolist() == [True, True]
    assert likely_areas(np.array([0.0, 1000]), boxes, every).tolist() == [False, False]
    assert likely_areas(np.array([100.0, 100]), boxes, every).tolist() == [True, False]
    assert likely_areas(np.array([100.0, 100]), boxes, np.array([True, False])).tolist() == [True, True]
