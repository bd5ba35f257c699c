import pytest

from util.class_names import COCO_CLASSES, COCO_IDS, comparable, disagreement, shared_ids


@pytest.mark.parametrize("one, other", [
    ("Traffic_Light", "traffic light"), ("T-shirt ", "t shirt"), ("caf\u00e9", "cafe\u0301"),
    ("STRASSE", "stra\u00dfe")])
def test_spelling_does_not_make_another_class(one, other):
    assert comparable(one) == comparable(other)
    assert disagreement({1: one}, "train", {1: other}, "val") == ""


def test_ids_of_other_names_are_listed():
    names = {1: "cat", 2: "dog", 3: "bird", 4: "cow"}
    text = disagreement(names, "the train set", {2: "bird", 3: "dog", 4: "Cow", 9: "cat"}, "x.pth")
    assert text == ("the train set and x.pth give category ids other class names: id 2 is 'dog' and 'bird'; "
                    "id 3 is 'bird' and 'dog'")
    many = {i: f"class {i}" for i in range(9)}
    assert disagreement(many, "a", {i: f"class {i + 1}" for i in many}, "b").endswith("; and 4 more")


def test_ids_of_only_one_source_do_not_count():
    assert disagreement({1: "cat"}, "a", {2: "dog"}, "b") == ""


def test_shared_classes_are_found_by_name():
    assert shared_ids({1: "Zebra", 2: "wheel", 3: "traffic_light"}, COCO_CLASSES) == {1: 24, 3: 10}


def test_cocos_ids():
    assert len(COCO_IDS) == 80 and COCO_IDS[:2] == [1, 2] and COCO_IDS[-1] == 90 and 12 not in COCO_IDS
    assert COCO_CLASSES[1] == "person" and COCO_CLASSES[90] == "toothbrush"
