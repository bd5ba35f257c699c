"""What is done with every split, whatever its layout."""
import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from datasets.annotations import Problem
from datasets.formats.parsed import Parsed, alike, repeating, usable
from datasets.table import make_table
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
                     (logging.WARNING, "train: dropped 2 boxes that are empty, outside their image or not finite, such as [200.0, 10.0, 5.0, 5.0] in a.jpg")]
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
    table = make_table({1: "a", 2: "b"}, [1, 2], ["a.jpg", "b.jpg"], np.full((2, 2), 99), np.array([0, 0, 0, 1, 0]), boxes,
                       np.array([1, 1, 2, 1, 1]), boxes[:, 2] * boxes[:, 3], np.zeros(5, bool))
    assert int(repeating(table).sum()) == 1
    assert [text for _, text in usable(Parsed(table), Path("x"), "train")[1]] == [
        "train: 1 boxes repeat one of the same class in their image, and count too"]


def test_classes_that_hardly_differ_are_named():
    assert alike({1: "RBC", 2: "WBC"}) == []
    assert "'red cell' (id 1) and 'Red_cell' (id 5)" in alike({1: "red cell", 2: "WBC", 5: "Red_cell"})[0]
