import numpy as np
import pytest

from datasets.coco import read_annotations
from datasets.evaluation.arrays import DetectionArrays, GroundTruth, rank_in_group


@pytest.fixture
def coco(coco_root):
    return read_annotations(coco_root, "val")


def test_ground_truth_is_in_the_order_of_ids(coco):
    coco.imgToAnns[2][0]["ignore"] = 1
    truth = GroundTruth.of_coco(coco, [8, 2])
    rows = coco.imgToAnns[2] + coco.imgToAnns[8]
    assert list(truth.images) == [2, 8] and list(truth.categories) == [1, 2, 3, 4, 5, 6]
    assert truth.image.tolist() == [0] * len(coco.imgToAnns[2]) + [1] * len(coco.imgToAnns[8])
    assert [truth.categories[i] for i in truth.label] == [row["category_id"] for row in rows]
    assert truth.boxes.tolist() == [row["bbox"] for row in rows]
    assert truth.areas.tolist() == [row["area"] for row in rows]
    assert truth.crowd.tolist() == [bool(row["iscrowd"]) for row in rows] and truth.crowd.sum() == 1
    assert truth.ignore.tolist() == [True] + [False] * (len(rows) - 1)
    assert truth.sizes.tolist() == [[coco.imgs[i]["width"], coco.imgs[i]["height"]] for i in (2, 8)]
    assert truth.objects.sum() == len(rows) - 1


def test_ids_may_be_text_or_large(coco):
    for name in ("a", 2**62 + 1):
        coco.imgs[name], coco.imgToAnns[name] = coco.imgs[2], coco.imgToAnns[2]
        truth = GroundTruth.of_coco(coco, [name])
        assert truth.images == [name] and len(truth.image) == len(coco.imgToAnns[2])


def test_images_without_a_size_have_no_border(coco):
    del coco.imgs[2]["width"]
    assert GroundTruth.of_coco(coco, [2]).sizes[0, 0] == np.inf


def test_rows_of_unknown_categories_do_not_count(coco):
    truth = GroundTruth.of_coco(coco, [1, 2])
    rows = [{"category_id": category, "bbox": [1, 2, 3, 4], "score": 0.5} for category in (1, 99, 6)]
    found = DetectionArrays.of_rows(truth, {2: rows, 1: rows[:1]})
    assert found.image.tolist() == [0, 1, 1] and found.label.tolist() == [0, 0, 5]
    assert found.boxes.tolist() == [[1, 2, 3, 4]] * 3 and found.scores.tolist() == [0.5] * 3
    empty = DetectionArrays.of_rows(truth, {1: [], 2: []})
    assert empty.boxes.shape == (0, 4) and empty.label.dtype == int


def test_rank_in_a_group_is_by_score_and_then_by_order():
    groups, scores = np.array([1, 0, 1, 1, 0]), np.array([0.5, 0.1, 0.9, 0.5, 0.2])
    assert rank_in_group(groups, scores).tolist() == [1, 1, 0, 2, 0]
    assert rank_in_group(groups[:0], scores[:0]).tolist() == []
