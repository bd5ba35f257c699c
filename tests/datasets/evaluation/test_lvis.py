"""LVIS's numbers: against those of its own program (the lvis package 0.5.3), and by examples."""
import numpy as np
import pytest
from pycocotools.coco import COCO

from datasets.evaluation.arrays import DetectionArrays, GroundTruth
from datasets.evaluation.evaluators import EVALUATORS
from datasets.evaluation.lvis import FederatedLabels, federated, frequency_stats, is_lvis, judged_rows
from tests.datasets.evaluation.scenes import recorded

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR@300", "ARs@300", "ARm@300", "ARl@300")


def pairs(values):
    return np.array(values, int).reshape(-1, 2)


@pytest.mark.parametrize("name", EVALUATORS)
@pytest.mark.parametrize("entry, truth, detections", list(recorded("lvis")))
def test_the_numbers_are_those_of_the_lvis_package(name, entry, truth, detections):
    labels = FederatedLabels(pairs(entry["negative"]), pairs(entry["not_exhaustive"]), np.array(entry["frequency"]))
    curves = EVALUATORS[name](*federated(truth, labels, detections), (1, 10, 300))
    wanted, ours = entry["results"], dict(zip(NAMES, curves.stats()))
    assert 0.2 < wanted["AP"] < 0.8
    for number in set(NAMES) - {"AR1", "AR10"}:
        assert ours[number] == pytest.approx(wanted[number], abs=1e-9), number
    assert {number: -1 if value is None else value for number, value in frequency_stats(curves, labels).items()
            } == pytest.approx({number: wanted[number] for number in ("APr", "APc", "APf")}, abs=1e-9)


def lvis_file():
    """Image 1 has a box of class 1; class 2 is not in it; class 3 has not been looked for. In image 2, some of class 1
    is not annotated."""
    coco = COCO()
    coco.dataset = {
        "images": [{"id": 1, "neg_category_ids": [2], "not_exhaustive_category_ids": []},
                   {"id": 2, "neg_category_ids": [], "not_exhaustive_category_ids": [1, 99]}],
        "categories": [{"id": i, "name": str(i), "frequency": "rcf"[i - 1]} for i in (1, 2, 3)],
        "annotations": [{"id": i, "image_id": i, "category_id": 1, "bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 0}
                        for i in (1, 2)]}
    coco.createIndex()
    return coco


def row(category, score=0.5, box=(50, 50, 20, 20)):
    return {"category_id": category, "score": score, "bbox": list(box)}


def test_what_is_judged():
    coco = lvis_file()
    truth = GroundTruth.of_coco(coco, [1, 2])
    labels = FederatedLabels.of_coco(coco, truth)
    assert labels.negative.tolist() == [[0, 1]] and labels.not_exhaustive.tolist() == [[1, 0]]
    assert labels.frequency.tolist() == ["r", "c", "f"]
    rows = {1: [row(1), row(2), row(3), row(1, box=(1, 1, 0, 5))], 2: [row(1), row(2)]}
    judged, counted = federated(truth, labels, DetectionArrays.of_rows(truth, rows))
    assert list(zip(counted.image.tolist(), counted.label.tolist())) == [(0, 0), (0, 1), (1, 0)]
    assert [judged_rows(coco, i, rows[i], 300) for i in (1, 2)] == [rows[1][:2], rows[2][:1]]
    assert judged.image.tolist() == [0, 1, 1] and judged.crowd.tolist() == [False, False, True]
    assert truth.crowd.sum() == 0  # what was given is left as it is


@pytest.mark.parametrize("image, ap", [(1, 0.5), (2, 1.0)])
def test_a_wrong_detection_costs_nothing_where_not_all_is_annotated(image, ap):
    coco = lvis_file()
    truth = GroundTruth.of_coco(coco, [image])
    found = DetectionArrays.of_rows(truth, {image: [row(1, 0.9), row(1, 0.8, (10, 10, 20, 20))]})
    curves = EVALUATORS["pycocotools"](*federated(truth, FederatedLabels.of_coco(coco, truth), found), (1, 10, 300))
    assert curves.stats()[0] == pytest.approx(ap)


def test_only_the_best_of_an_image_count_whatever_their_class():
    coco = lvis_file()
    truth = GroundTruth.of_coco(coco, [1])
    rows = [row(3, 0.1 + i / 1000) for i in range(300)] + [row(1, 0.05, (10, 10, 20, 20))]
    labels = FederatedLabels.of_coco(coco, truth)
    assert len(federated(truth, labels, DetectionArrays.of_rows(truth, {1: rows}))[1].scores) == 0
    assert judged_rows(coco, 1, rows, 300) == []
    assert len(federated(truth, labels, DetectionArrays.of_rows(truth, {1: rows}), 301)[1].scores) == 1


def test_what_a_file_of_lvis_is():
    assert is_lvis(lvis_file())
    for absent in ("frequency", "neg_category_ids"):
        coco = lvis_file()
        for entry in [*coco.cats.values(), *coco.imgs.values()]:
            entry.pop(absent, None)
            if absent != "frequency":
                entry.pop("not_exhaustive_category_ids", None)
        assert not is_lvis(coco)
