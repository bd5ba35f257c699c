"""COCO files as tables: in parts and entry by entry they are the same."""
import json
import logging
import os
import random
from collections import Counter

import numpy as np
import pytest

from datasets.benchmark_facts import NEGATIVE, NOT_EXHAUSTIVE
from datasets.formats import json_parts
from datasets.formats.coco_file import _NotPlain, read_by_entry, read_coco_file, read_plainly, unused_root
from tests.datasets.facts import same_facts
from util.errors import UserError

SEVERAL = {"images": [{"id": i, "file_name": f"{i}.jpg", "width": 100 + i, "height": 80} for i in (3, 1, 2)],
           "categories": [{"id": 4, "name": "cat", "supercategory": "x"}, {"id": 0, "name": "dog"}]}
POLYGON = [[1, 2, 3, 4, 5.5, 6]]


def annotations(**change):
    rows = [{"id": i, "image_id": 1 + i % 3, "category_id": 4 * (i % 2), "bbox": [i, 2.5, 10, 5 + i],
             "area": 40 + i, "iscrowd": int(i == 7), "segmentation": POLYGON} for i in range(1, 12)]
    for row in rows[3:5]:
        row.update(change)
    return [{name: value for name, value in row.items() if value != "absent"} for row in rows]


def write(path, indent=None, **content):
    path.write_text(json.dumps({"info": {}} | SEVERAL | {"annotations": annotations()} | content, indent=indent))
    return path


def same(one, other):
    assert one.table.names == other.table.names and +one.derived == +other.derived and one.notes == other.notes
    assert list(one.table.file_names) == list(other.table.file_names)
    for name in ("ids", "folders", "sizes", "starts", "boxes", "labels", "areas", "crowds"):
        mine, its = getattr(one.table, name), getattr(other.table, name)
        np.testing.assert_array_equal(mine, its, err_msg=name, strict=True)
    same_facts(one.table.facts, other.table.facts)


PLAIN = {
    "nothing": {}, "no area": {"area": "absent"}, "no flag": {"iscrowd": "absent"},
    "neither": {"area": "absent", "iscrowd": "absent"}, "area 0": {"area": 0}, "large area": {"area": 1e9},
    "NaN": {"bbox": [float("nan"), 1, 2, 3]}, "infinite": {"bbox": [1, 2, float("inf"), 3]}, "NaN area": {
        "area": float("nan")}, "no id": {"id": "absent"}, "null id": {"id": None}, "text id": {"id": "a"},
    "no outline": {"segmentation": "absent"}, "mask": {"segmentation": {"counts": [1, 2], "size": [3, 4]}},
    "empty box": {"bbox": [1, 2, 0, 3]}, "ignored": {"ignore": 1}, "ignored, in words": {"ignore": "True"},
    "visible": {"vbox": [1, 2, 3, 4]}, "keypoints": {"keypoints": [{"x": 1}, {"y": [2]}]}}


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("block", [64, 1 << 22])
def test_both_ways_of_reading_agree(tmp_path, monkeypatch, name, block):
    monkeypatch.setattr(json_parts, "BLOCK", block)
    for number, indent in enumerate((None, 2)):
        path = write(tmp_path / f"{number}.json", indent, annotations=annotations(**PLAIN[name]))
        same(read_plainly(path), read_by_entry(path))


@pytest.mark.parametrize("content", [
    {"annotations": []}, {"annotations": annotations()[::-1]},
    {"annotations": [a | {"area": 50} for a in annotations()]},
    {"annotations": [{k: v for k, v in a.items() if k not in ("area", "iscrowd")} for a in annotations()]},
    {"categories": [{"id": 4, "name": "cat"}, {"id": 0, "name": "日本"}, {"id": 9_999, "name": "unused"}]}])
def test_both_ways_agree_on_whole_files(tmp_path, content):
    path = write(tmp_path / "x.json", **content)
    same(read_plainly(path), read_by_entry(path))
    (tmp_path / "first.json").write_text(json.dumps({"annotations": annotations()} | SEVERAL))
    same(read_plainly(tmp_path / "first.json"), read_by_entry(tmp_path / "first.json"))


NOT_PLAIN = {"text": {"area": "40"}, "null area": {"area": None}, "flag as text": {"iscrowd": "1"},
             "flag as bool": {"iscrowd": True}, "box as text": {"bbox": ["1", "2", "3", "4"]},
             "no box": {"bbox": "absent", "segmentation": [[1, 2, 3, 4, 5, 9]]}, "image id as text": {"image_id": "2"},
             "float category": {"category_id": 4.0}}


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_what_is_written_otherwise_is_read_entry_by_entry(tmp_path, name):
    path = write(tmp_path / "x.json", annotations=annotations(**NOT_PLAIN[name]))
    with pytest.raises((_NotPlain, ValueError, TypeError, KeyError)):
        read_plainly(path)
    found = read_coco_file(path)
    same(found, read_by_entry(path))
    assert set(found.derived.values()) == {2}


@pytest.mark.parametrize("change, words", [
    ({"category_id": 1}, "annotation 4 has category_id 1"), ({"image_id": 99}, "annotation 4 has image_id 99"),
    ({"bbox": [1, 2, 3]}, "annotation 4: bbox must be four numbers"), ({"bbox": [1, 2, 3, True]}, "annotation 4: bbox"),
    ({"bbox": [1, 2, 3, 10**301]}, "annotation 4: bbox"), ({"iscrowd": 2}, "annotation 4: iscrowd must be 0 or 1")])
def test_what_cannot_be_used_is_named(tmp_path, change, words):
    path = write(tmp_path / "x.json", annotations=annotations(**change))
    with pytest.raises(UserError, match=f"x.json: {words}"):
        read_coco_file(path)


@pytest.mark.parametrize("images", [
    [{"id": "a", "file_name": "a.jpg", "width": 1, "height": 1}], [{"id": 2**70, "file_name": "a", "width": 1,
                                                                    "height": 1}]])
def test_ids_that_are_no_small_numbers_are_read(tmp_path, images):
    found = read_coco_file(write(tmp_path / "x.json", images=images, annotations=[]))
    assert found.table.image_id(0) == images[0]["id"]


def test_the_root_of_the_categories(tmp_path):
    root, cat, dog = ({"id": i, "name": name, "supercategory": above}
                      for i, (name, above) in enumerate([("pets", "none"), ("cat", "pets"), ("dog", "pets")]))
    assert unused_root([root, cat, dog], {1}) is root and unused_root([root, cat, dog], {0, 1}) is None
    assert unused_root([cat, dog], {1}) is None and unused_root([root], set()) is None
    assert unused_root([root, cat, dog | {"supercategory": "wild"}], set()) is None
    rows = [a | {"category_id": 1} for a in annotations()]
    path = write(tmp_path / "x.json", categories=[root, cat, dog], annotations=rows)
    for read in (read_plainly, read_by_entry):
        found = read(path, with_root=True)
        assert found.table.names == {1: "cat", 2: "dog"} and found.notes[0][0] == logging.INFO
        assert read(path).table.names == {0: "pets", 1: "cat", 2: "dog"}


def lvis_images(**change):
    """As in LVIS: no file names; image 3 says nothing of other classes."""
    images = [{"id": i, "coco_url": f"http://images.cocodataset.org/val2017/{i:03}.jpg", "width": 100, "height": 80,
               NEGATIVE: [0, 77], NOT_EXHAUSTIVE: [4]} for i in (3, 1, 2)]
    del images[0][NEGATIVE], images[0][NOT_EXHAUSTIVE]
    return [images[0], images[1] | change, images[2]]


@pytest.mark.parametrize("block", [64, 1 << 22])
def test_what_lvis_and_crowdhuman_say_is_in_the_table(tmp_path, monkeypatch, block):
    monkeypatch.setattr(json_parts, "BLOCK", block)
    path = write(tmp_path / "x.json", images=lvis_images(), annotations=annotations(ignore=True, bbox_vis=None),
                 categories=[{"id": 4, "name": "cat", "frequency": "r"}, {"id": 0, "name": "dog"}])
    found, same_found = read_plainly(path), read_by_entry(path)
    same(found, same_found)
    table, facts = found.table, found.table.facts
    assert list(table.file_names) == [f"val2017/00{i}.jpg" for i in (1, 2, 3)] and found.derived["file_name"] == 3
    assert facts.frequencies == {4: "r"} and facts.has_class_lists and facts.has_visible
    # By index: image 1 is the first. No class has the id 77.
    assert sorted(facts.negative.tolist()) == [[0, 0], [1, 0]]
    assert sorted(facts.not_exhaustive.tolist()) == [[0, 4], [1, 4]]
    assert sorted(table.boxes[facts.ignored, 0].tolist()) == [4, 5]  # of the annotations that are changed


def test_other_files_have_no_facts(tmp_path):
    for read in (read_plainly, read_by_entry):
        facts = read(write(tmp_path / "x.json")).table.facts
        assert not (facts.frequencies or facts.has_class_lists or facts.has_visible)
        assert not any(map(len, (facts.negative, facts.not_exhaustive, facts.ignored)))


@pytest.mark.parametrize("content, words", [
    ({"images": lvis_images(neg_category_ids="0")}, "image 1: neg_category_ids must be a list of category ids, got"),
    ({"images": lvis_images(not_exhaustive_category_ids=["4"])}, "image 1: not_exhaustive_category_ids must be a list"),
    ({"images": lvis_images(coco_url="val2017.jpg")}, "an entry of 'images' .id 1. has no 'file_name'"),
    ({"annotations": annotations(ignore=2)}, "annotation 4: ignore must be 0 or 1, got 2")])
def test_facts_that_mean_nothing_are_named(tmp_path, content, words):
    path = write(tmp_path / "x.json", **content)
    for read in (read_coco_file, read_by_entry):
        with pytest.raises(UserError, match=f"x.json: {words}"):
            read(path)


@pytest.mark.parametrize("name", ["images", "annotations", "categories"])
def test_a_list_that_is_there_twice_is_refused(tmp_path, name):
    """All but the last would be lost."""
    path = write(tmp_path / "x.json")
    path.write_text(path.read_text()[:-1] + f', "{name}": []' + "}")
    with pytest.raises(UserError, match=f"x.json is not valid JSON: '{name}' is there more than once"):
        read_coco_file(path)
    path = write(tmp_path / "y.json")
    path.write_text('{"info": 1, ' + path.read_text()[1:])
    assert len(read_coco_file(path).table) == 3  # that is of no use here


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.json")
    with pytest.raises(UserError, match="no annotation file .*x.json"):
        read_coco_file(tmp_path / "x.json")


CHANGES = [None, True, -1, 0, 2, 4, 1.0, 1.5, 1e300, float("nan"), float("inf"), 10**400, 2**63, "", "1", "a\0",
           "\ud800", [], [[]], {}, [1, 2, 3, 4], {"counts": [1]}, "segmentation", {"segmentation": [1, 2]}, 10_000]


def outcome(read, path, with_root):
    try:
        found = read(path, with_root)
    except UserError as error:
        return str(error)
    table = found.table
    return [table.names, [table.image_id(i) for i in range(len(table))], list(table.file_names), table.starts.tolist(),
            repr([table.sizes.tolist(), table.boxes.tolist(), table.areas.tolist()]), table.labels.tolist(),
            table.crowds.tolist(), +found.derived, found.notes]


def test_both_ways_agree_on_what_is_changed_at_random(tmp_path, monkeypatch):
    generator, outcomes = random.Random(0), Counter()
    for number in range(400):
        content = json.loads(json.dumps(SEVERAL | {"annotations": annotations()}))
        for _ in range(generator.choice([1, 1, 2])):
            name = generator.choice(["images", "annotations", "annotations", "categories"])
            entry = generator.choice(content[name])
            key = generator.choice([*entry, "area", "iscrowd", "segmentation"])
            entry[key] = generator.choice(CHANGES)
            if generator.random() < 0.2:
                del entry[key]
        path = write(tmp_path / "x.json", generator.choice([None, 1]), **content)
        monkeypatch.setattr(json_parts, "BLOCK", generator.choice([1, 7, 300, 1 << 22]))
        found = [outcome(read, path, number % 2) for read in (read_coco_file, read_by_entry)]
        assert found[0] == found[1], path.read_text()
        outcomes[type(found[0])] += 1
    assert min(outcomes[str], outcomes[list]) > 50
