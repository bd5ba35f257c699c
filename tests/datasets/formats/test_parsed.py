"""What is done with every split, whatever its layout."""
import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.annotations import Problem
from datasets.coco import read_annotations
from datasets.coco_eval import coco_results, summarize
from datasets.formats.parsed import Parsed, alike, repeating, usable
from datasets.table import make_table
from tests.datasets.coco_sets import edited, every, only_image, opened, untouched, worth
from util.errors import UserError


def parsed(boxes, **other):
    count = len(boxes)
    table = make_table({1: "cat"}, [1], ["a.jpg"], np.array([(100, 80)]), np.zeros(count, int), np.array(boxes, float),
                       np.ones(count), np.array([box[2] * box[3] for box in boxes]), np.zeros(count))
    return Parsed(table, **other)


def read(*arguments, **other):
    return usable(parsed(*arguments, **other), Path("x.json"), "train")


def test_boxes_are_cut_and_the_useless_dropped_and_both_are_told():
    table, notes = read([(10, 10, 20, 20), (-10, 70, 30, 30), (200, 10, 5, 5), (10, 10, 0, 5)])
    assert table.boxes.tolist() == [[10, 10, 20, 20], [0, 70, 20, 10]] and table.areas.tolist() == [400, 200]
    assert notes == [(logging.INFO, "train: 1 boxes extend beyond their image: cut at its border, for training and "
                                    "evaluation alike"),
                     (logging.WARNING, "train: dropped 2 boxes that are empty, outside their image or not finite, such "
                                       "as [200.0, 10.0, 5.0, 5.0] in a.jpg")]
    assert read([(10, 10, 20, 20)])[1] == []


def test_what_was_derived_and_what_is_missing_is_counted():
    problems = [Problem("no_labels", "a.txt", {}), Problem("size", "a.xml", {}), Problem("no_labels", "b.txt", {})]
    _, notes = read([(1, 2, 3, 4)], derived=Counter({"area": 3}), problems=problems, notes=[(logging.INFO, "so")])
    assert [text for _, text in notes] == [
        "train: so", "train: derived 3 areas that are null, not above 0, the same for all or larger than their box: "
        "the box's area; 1 image sizes that are left out: those of the files",
        "train: 2 images without an annotation file, taken as images without objects, such as a.txt"]


def test_any_other_problem_stops_a_training():
    with pytest.raises(UserError, match=r"x.json: a, line 3: bad \(and 1 more\). tools/inspect_dataset.py lists"):
        read([(1, 2, 3, 4)], problems=[Problem("no_labels", "x", {}), Problem("bad_line", "a, line 3: bad", {}),
                                       Problem("unknown_category", "c", {})])


def test_boxes_of_another_format_are_told():
    _, notes = read([(0.1 * i, 0.1, 0.2, 0.3) for i in range(5)])
    assert len(notes) == 1 and "look like parts of the image" in notes[0][1]


def test_boxes_that_repeat_one_are_counted():
    boxes = np.array([[1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 5]], float)
    table = make_table({1: "a", 2: "b"}, [1, 2], ["a.jpg", "b.jpg"], np.full((2, 2), 99), np.array([0, 0, 0, 1, 0]),
                       boxes, np.array([1, 1, 2, 1, 1]), boxes[:, 2] * boxes[:, 3], np.zeros(5, bool))
    assert int(repeating(table).sum()) == 1
    assert [text for _, text in usable(Parsed(table), Path("x"), "train")[1]] == [
        "train: 1 boxes repeat one of the same class in their image, and count too"]


def test_classes_that_hardly_differ_are_named():
    assert alike({1: "RBC", 2: "WBC"}) == []
    assert "'red cell' (id 1) and 'Red_cell' (id 5)" in alike({1: "red cell", 2: "WBC", 5: "Red_cell"})[0]


# the same of COCO sets


def test_unusable_boxes_are_dropped_and_counted(root, caplog):
    bad = [[200, 10, 20, 20], [-50, 10, 20, 20], [10, -20, 5, 20], [10, 10, 0, 20], [10, 10, 20, -3],
           [float("nan"), 10, 20, 20], [10, 10, float("inf"), 20], [10, 10, 20, float("nan")]]
    good = [[10, 10, 20, 20], [-5, 40, 20, 20], [90, 70, 1000, 1000]]
    only_image(root, 100, 80, bad[:4] + good + bad[4:])
    with caplog.at_level(logging.WARNING):
        _, target = untouched(root)[0]
    assert target["boxes"].tolist() == [[10, 10, 30, 30], [0, 40, 15, 60], [90, 70, 100, 80]]
    assert len(target["labels"]) == len(target["area"]) == len(target["iscrowd"]) == 3
    assert "train2017: dropped 8 boxes" in caplog.text


def test_dropped_boxes_do_not_count_in_the_evaluation(root):
    only_image(root, 100, 80, [[10, 10, 20, 20], [30, 10, 0, 20], [200, 10, 20, 20]])
    dataset = opened(root, "val")
    found = {"scores": torch.tensor([0.9]), "labels": dataset[0][1]["labels"],
             "boxes": torch.tensor([[10.0, 10, 30, 30]])}
    summary = summarize(dataset.coco, coco_results([dataset.ids[0]], [found], dataset.coco.cats))
    assert summary.stats[0] == pytest.approx(1.0)


def test_nothing_is_logged_for_a_sound_set(coco_root, caplog):
    with caplog.at_level(logging.WARNING):
        opened(coco_root), opened(coco_root, "val")
    assert not caplog.records


@pytest.mark.parametrize("left", [lambda x, w: [-w / 2, w], lambda x, w: [-2, w + 2], lambda x, w: [x, 1000]])
def test_boxes_over_the_border_are_cut_for_the_evaluation_as_for_the_training(root, left, caplog):
    def move(annotation):
        x, y, width, height = annotation["bbox"]
        x, width = left(x, width)
        annotation["bbox"] = [x, y, width, height]

    with edited(root, "val") as content:
        every(move)(content)
    with caplog.at_level(logging.INFO):
        coco = read_annotations(root, "val")
    assert f"val2017: {len(content['annotations'])} boxes extend beyond their image" in caplog.text
    for annotation in coco.dataset["annotations"]:
        x, y, width, height = annotation["bbox"]
        image = coco.imgs[annotation["image_id"]]
        assert x >= 0 and 0 < x + width <= image["width"] and annotation["area"] <= width * height
    assert worth(root)[0] == pytest.approx(1)


def test_a_mask_keeps_its_area(root):
    only_image(root, 100, 80, [[10, 10, 20, 20], [-10, 10, 20, 20], [50, 10, 20, 20]])
    with edited(root) as content:
        for annotation, area in zip(content["annotations"], (150, 350, 150)):
            annotation["area"] = area
    assert [a["area"] for a in read_annotations(root, "train").dataset["annotations"]] == [150, 200, 150]


def test_what_was_derived_is_counted_in_one_line(root, caplog):
    with edited(root) as content:
        every(lambda a: a.update(area=None, iscrowd=a["iscrowd"] or None))(content)
    with caplog.at_level(logging.INFO):
        read_annotations(root, "train")
    (record,) = caplog.records
    count = len(content["annotations"])
    assert f"train2017: derived {count} areas" in record.message and f"; {count - 1} crowd flags" in record.message \
        or f"train2017: derived {count - 1} crowd flags" in record.message and f"; {count} areas" in record.message


def test_boxes_of_another_format_are_told_of_a_file(root, caplog):
    with edited(root) as content:
        every(lambda a: a.update(bbox=[x / 200 for x in a["bbox"]]))(content)
    opened(root)
    assert "look like parts of the image" in caplog.text
