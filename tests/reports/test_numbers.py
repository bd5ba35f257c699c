"""summary.json: written from an evaluation, read back for the weights it belongs to, refused for others."""
import json

import numpy as np
import pytest

from datasets.coco import read_annotations
from datasets.coco_eval import STATS, summarize
from reports.error_analysis import confusion_matrix, match_detections, operating_points, tide_errors
from reports.numbers import FORMAT, read_numbers, rounded_down, write_numbers
from util.errors import UserError


@pytest.fixture
def written(coco_root, tmp_path):
    """Path of the numbers of an evaluation that finds the objects of classes 1 and 2, and what they were made of."""
    coco = read_annotations(coco_root, "val")
    detections = {i: [{"image_id": i, "category_id": a["category_id"], "bbox": a["bbox"], "score": 0.7512}
                      for a in coco.imgToAnns[i] if not a["iscrowd"] and a["category_id"] < 3] for i in coco.imgs}
    summary = summarize(coco, detections)
    matches = match_detections(coco, detections)
    path = tmp_path / "summary.json"
    write_numbers(path, summary, operating_points(matches), tide_errors(matches), {"checkpoint": tmp_path / "c.pth"},
                  "abc", {"precision": "float32"})
    return path, summary, matches


def test_numbers_of_these_weights_come_back(written, tmp_path):
    path, summary, _ = written
    measured = read_numbers(path, "abc")
    assert measured.thresholds == {1: 0.751, 2: 0.751}  # the other classes have no detection
    assert measured.stats == {name: value for name, value in zip(STATS, summary.stats) if value >= 0}
    assert measured.evaluation == {"precision": "float32"}
    assert measured.images == 8 and measured.facts == {"checkpoint": str(tmp_path / "c.pth")}


def test_the_file_has_what_its_description_says(written):
    path, summary, matches = written
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content.keys() == {"format", "weights", "facts", "evaluation", "images", "boxes", "stats", "classes",
                              "errors"}
    assert content["format"] == FORMAT and content["boxes"] == matches.boxes.sum()
    assert content["classes"].keys() == {"1", "2", "3", "4", "5", "6"}
    disc, square = content["classes"]["1"], content["classes"]["3"]
    assert disc["name"] == "disc" and disc["AP"] == disc["precision"] == disc["recall"] == disc["f1"] == 1
    assert disc["boxes"] == np.sum(confusion_matrix(matches)[0])
    assert square["threshold"] is square["f1"] is None and square["AP"] == 0
    assert content["errors"]["missed"]["count"] == matches.boxes[2:].sum()


def test_a_threshold_keeps_the_detection_it_was_measured_with():
    assert [rounded_down(score) for score in (0.7519, 0.0004, 1.0)] == [0.751, 0.0, 1.0]


@pytest.mark.parametrize("change, fault", [
    ({"weights": "other"}, "other weights"), ({"format": 1}, "this version"), ({"evaluation": None}, "damaged"),
    ({"stats": {"AP": 1.5}}, "damaged.* 1"),
    ({"stats": {"AP": "high"}}, "damaged"), ({"classes": {"1": {}}}, "damaged"), ({"classes": []}, "damaged"),
    ({"classes": {"one": {"threshold": 0.5}}}, "damaged"), ({"facts": None}, "damaged"),
    ({"facts": {"data": 5}}, "damaged.*no texts"), ({"images": None}, "damaged")])
def test_a_wrong_file_is_refused_by_name(written, change, fault):
    path = written[0]
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | change), encoding="utf-8")
    with pytest.raises(UserError, match=f"summary.json.*{fault}"):
        read_numbers(path, "abc")


@pytest.mark.parametrize("text", [None, "", "[" * 100_000, "[]", "\x00"])
def test_what_is_no_summary_is_refused_by_name(tmp_path, text):
    path = tmp_path / "summary.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="summary.json"):
        read_numbers(path, "abc")
