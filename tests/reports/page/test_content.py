"""What report.html holds, unpacked again: it must be what the error analysis says."""
import base64
import io

import numpy as np
import pytest
from PIL import Image

from datasets.coco_eval import summarize
from reports.error_analysis import KINDS, annotations_of, match_detections, operating_points, tide_errors
from reports.page import content as module
from reports.page.content import (
    LEAST_SCORE,
    OUTCOMES,
    costs,
    outcomes,
    packed_boxes,
    page_content,
    read_pictures,
    size_of,
    subjects,
)
from tests.reports.page.scene import CLASSES, HEIGHT, WIDTH, coco_of, scene


def unpacked(text, kind):
    return np.frombuffer(base64.b64decode(text), kind)


@pytest.fixture(scope="module")
def example():
    """Ground truth, detections, matches and content of a report."""
    coco, detections = scene()
    matches = match_detections(coco, detections)
    content = page_content(summarize(coco, detections), matches, operating_points(matches), {3: b"jpeg"},
                           {"data": "DIR"})
    return coco, detections, matches, content


def test_detections_are_those_of_the_matches_without_the_faint_ones(example):
    coco, _, matches, content = example
    shown, rows = matches.only(matches.scores >= LEAST_SCORE), content["detections"]
    assert 0 < content["left_out"] == len(matches.scores) - len(shown.scores)
    assert unpacked(rows["score"], "<f8").tolist() == shown.scores.tolist()
    assert unpacked(rows["label"], "<u2").tolist() == shown.labels.tolist()
    assert unpacked(rows["located"], "<i4").tolist() == shown.located.tolist()
    assert (unpacked(rows["image"], "<u4") + 1).tolist() == shown.images.tolist()  # ids from 1
    boxes = unpacked(rows["box"], "<u2").reshape(-1, 4) / 65535 * [WIDTH, HEIGHT, WIDTH, HEIGHT]
    corners = np.concatenate([shown.bboxes[:, :2], shown.bboxes[:, :2] + shown.bboxes[:, 2:]], 1)
    assert np.abs(boxes - corners.clip(0, [WIDTH, HEIGHT, WIDTH, HEIGHT])).max() < 0.01


def test_boxes_are_in_the_order_of_the_matches_and_crowds_apart(example):
    coco, detections, matches, content = example
    rows = sum(annotations_of(coco, detections), [])
    assert unpacked(content["truth"]["label"], "<u2").tolist() == matches.truth.tolist()
    assert unpacked(content["truth"]["size"], "u1").tolist() == size_of(np.array([a["area"] for a in rows])).tolist()
    crowds = sum(annotations_of(coco, detections, crowds=True), [])
    assert crowds and len(unpacked(content["crowds"]["label"], "<u2")) == len(crowds)
    assert len(rows) + len(crowds) == len(coco.anns)


def test_outcomes_count_what_the_error_split_counts(example):
    _, _, matches, content = example
    errors, found = tide_errors(matches), outcomes(matches)
    assert {kind: int((found == i).sum()) for i, kind in enumerate(KINDS) if kind != "missed"} == {
        kind: errors.counts[kind] for kind in KINDS if kind != "missed"}
    assert content["outcomes"] == OUTCOMES and (matches.found[found == OUTCOMES.index("found")] >= 0).all()
    assert set(found) >= {OUTCOMES.index(name) for name in ("classification", "localization", "background", "found",
                                                            "duplicate")}
    about = subjects(matches)
    wrong_class = found == OUTCOMES.index("classification")
    assert (matches.truth[about[wrong_class]] != matches.labels[wrong_class]).all()
    poor = found == OUTCOMES.index("localization")
    assert (matches.truth[about[poor]] == matches.labels[poor]).all()
    assert (about[found == OUTCOMES.index("background")] == -1).all()


def test_classes_images_and_pictures(example):
    coco, _, matches, content = example
    assert [entry["name"] for entry in content["classes"]] == list(CLASSES.values())
    points = operating_points(matches)
    assert all(point.score - 0.001 < entry["best_score"] <= point.score
               for entry, point in zip(content["classes"], points))
    assert content["images"]["names"] == [image["file_name"] for image in coco.imgs.values()]
    assert unpacked(content["images"]["sizes"], "<u4").tolist() == [WIDTH, HEIGHT] * 10
    assert base64.b64decode(content["pictures"]["3"]) == b"jpeg" and content["facts"] == {"data": "DIR"}


def test_sizes_are_those_of_coco():
    areas = np.array([32**2 - 1, 32**2, 96**2, 96**2 + 1])
    assert size_of(areas).tolist() == [0, 1, 1, 2]


def test_boxes_that_are_no_numbers_or_outside_lie_on_the_border():
    boxes = np.array([[-10, -10, 500, 20], [np.nan, 0, np.inf, 10]])
    assert unpacked(packed_boxes(boxes, np.array([[100, 100]] * 2)), "<u2").reshape(2, 4).tolist() == [
        [0, 0, 65535, 6554], [0, 0, 0, 6554]]


def test_a_missed_box_costs_one_and_a_wrong_detection_its_score():
    coco = coco_of(["a", "b", "c"], [(2, 2, (10, 10, 50, 50), False), (3, 2, (10, 10, 50, 50), False)])
    rows = {1: [(0.9, 300), (0.2, 200)], 2: [(0.8, 300)], 3: [(0.7, 10)]}
    detections = {image: [{"image_id": image, "category_id": 2, "bbox": [x, 10, 50, 50], "score": score}
                          for score, x in found] for image, found in rows.items()}
    assert costs(coco, detections, match_detections(coco, detections)) == pytest.approx([0.9, 1.8, 0])


def test_pictures_are_small_copies_of_the_worst_images(tmp_path, monkeypatch, caplog):
    coco = coco_of(["a.png", "gone.png", "c.png", "d.png"], [])
    for name, colour in (("a.png", "red"), ("c.png", "blue"), ("d.png", "lime")):
        Image.new("RGB", (WIDTH, HEIGHT), colour).save(tmp_path / name)
    monkeypatch.setattr(module, "PICTURES", 3)
    monkeypatch.setattr(module, "LARGE_SIDE", 200)
    pictures = read_pictures(coco, list(coco.imgs), np.array([0, 5, 9, 1]), tmp_path)
    assert list(pictures) == [2, 3] and "gone.png" in caplog.text
    with Image.open(io.BytesIO(pictures[2])) as picture:
        assert picture.format == "JPEG" and picture.size == (200, 150)
        assert picture.getpixel((50, 50))[2] > 200 > picture.getpixel((50, 50))[0]


def test_detections_beyond_those_that_ap_counts_are_told():
    """105 of one class in an image, 40 of another: COCO takes the best 100 of each."""
    first, second = sorted(CLASSES)[:2]
    coco = coco_of(["a.png"], [(1, first, [0, 0, 10, 10], False)])
    rows = [{"image_id": 1, "category_id": label, "bbox": [0, 0, 10, 10], "score": 0.5}
            for label, count in ((first, 105), (second, 40)) for _ in range(count)]
    matches = match_detections(coco, {1: rows})
    content = page_content(summarize(coco, {1: rows}), matches, operating_points(matches), {}, {})
    assert content["beyond_limit"] == 5 and content["limit"] == 100 and content["left_out"] == 0


def test_without_such_detections_nothing_is_told(example):
    assert example[3]["beyond_limit"] == 0
