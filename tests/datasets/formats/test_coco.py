"""COCO's and Roboflow's folders are told apart, and their splits found."""
import json
import shutil

import pytest

from datasets.coco import read_annotations
from datasets.coco_eval import summarize
from datasets.formats import find_layout
from datasets.formats.coco import coco_2017, roboflow
from tests.datasets.coco_sets import edited, file_of, opened, picture, refusal, untouched
from tests.datasets.formats.layouts import write_coco, write_roboflow
from util.errors import UserError


def test_each_is_recognised_by_its_files(tmp_path):
    coco, export = write_coco(tmp_path / "coco"), write_roboflow(tmp_path / "export")
    assert coco_2017(export) is None and roboflow(coco) is None
    for root, name, folders in ((coco, "COCO 2017", ["train2017", "val2017"]),
                                (export, "Roboflow's COCO export", ["train", "valid"])):
        layout = find_layout(root)
        assert layout.name == name and list(layout.sources) == ["train", "val"]
        assert [source.folder for source in layout.sources.values()] == [root / folder for folder in folders]
        assert [source.names() for source in layout.sources.values()] == [{1: "ant", 2: "bee", 3: "cat"}] * 2


def test_a_folder_without_its_annotations_is_named(tmp_path):
    (write_coco(tmp_path / "set") / "annotations/instances_val2017.json").unlink()
    with pytest.raises(UserError, match="no annotation file .*instances_val2017.json"):
        find_layout(tmp_path / "set").sources["val"].read()


# what is refused, by name


@pytest.mark.parametrize("name", ["../outside.jpg", "..\\outside.jpg", "part/../../outside.jpg", "/etc/hostname"])
def test_file_names_lead_to_no_other_folder(root, name):
    shutil.copy(picture(root, 0), root / "outside.jpg")
    with edited(root) as content:
        content["images"][0]["file_name"] = name
    assert "leads outside" in refusal(opened, root)


VALUES = [None, True, -1, 0, 1.5, 1e308, float("nan"), float("inf"), 10**400, "", "a\0", "\ud800", [], [[]], {}, "1"]


def test_no_value_in_an_annotation_file_is_a_crash(root):
    """Each place of a small file takes each of VALUES, or is left out; only a UserError may come of it."""
    with edited(root) as content:
        content["images"], content["categories"] = content["images"][:1], content["categories"][:1]
        content["annotations"] = [a | {"category_id": 1} for a in content["annotations"] if a["image_id"] == 1][:1]
    places = [(name, 0, key) for name in ("images", "categories", "annotations") for key in content[name][0]]
    places += [("annotations", 0, "bbox", 2), ("images", 0), ("categories", 0), ("annotations", 0), ("images",),
               ("categories",), ("annotations",)]
    outcomes = {"read": 0, "refused": 0}
    for *path, last in places:
        for value in [*VALUES, "left out"]:
            changed = json.loads(json.dumps(content))
            entry = changed
            for key in path:
                entry = entry[key]
            if value == "left out":
                del entry[last]
            else:
                entry[last] = value
            file_of(root, "train").write_text(json.dumps(changed))
            try:
                dataset = untouched(root)
                dataset[0]
                summarize(dataset.coco, {i: [] for i in dataset.ids})
                outcomes["read"] += 1
            except UserError as error:
                assert str(error).isprintable()
                outcomes["refused"] += 1
    assert min(outcomes.values()) > 50


def test_missing_folders_and_files_are_named(root):
    assert "nowhere" in refusal(opened, root / "nowhere")
    assert "image_info_test-dev2017.json" in refusal(opened, root, "test")
    shutil.rmtree(root / "val2017")
    assert "val2017" in refusal(opened, root, "val")


@pytest.mark.parametrize("text, words", [
    ("{", "not valid JSON"), ("", "not valid JSON"), ("[]", "a list"), ("3", "int"), ("{}", "'images'"),
    ('{"images": [], "categories": []}', "'images'"),
    ('{"images": [{"id": 1, "file_name": "a.jpg", "height": 1, "width": 1}]}', "'categories'"),
    ('{"images": {"id": 1}, "categories": [{"id": 1, "name": "a"}]}', "'images'"),
    ('{"images": ["a.jpg"], "categories": [{"id": 1, "name": "a"}]}', "'images'"),
    ('{"images": [{"id": 1, "file_name": "a.jpg", "height": 1, "width": 1}], "categories": [{"id": 1, "name": "a"}], '
     '"annotations": null}', "'annotations'"),
])
def test_files_that_are_not_coco_are_refused(root, text, words):
    file_of(root, "train").write_text(text)
    message = refusal(opened, root)
    assert "instances_train2017.json" in message and words in message


def test_a_file_that_is_not_text_is_refused(root):
    file_of(root, "train").write_bytes(b"\x89PNG\xff\xfe\x00")
    assert "instances_train2017.json" in refusal(opened, root)


@pytest.mark.parametrize("entries, key", [
    ("images", "id"), ("images", "file_name"), ("images", "height"), ("images", "width"), ("categories", "id"),
    ("categories", "name"), ("annotations", "image_id"), ("annotations", "category_id"),
    ("annotations", "bbox")])
def test_an_entry_that_lacks_a_key_is_refused(root, entries, key):
    with edited(root) as content:
        del content[entries][1][key]
    text = refusal(opened, root)
    assert repr(entries) in text and repr(key) in text and "instances_train2017.json" in text


@pytest.mark.parametrize("change", [
    {"category_id": 99}, {"image_id": 99}, {"bbox": [1, 2, 3]}, {"bbox": "1 2 3 4"}, {"bbox": [1, 2, 3, None]},
    {"bbox": None}, {"iscrowd": "x"}, {"iscrowd": 2}, {"area": "x"}, {"image_id": True}, {"category_id": "disc"}])
def test_an_annotation_with_foreign_values_is_refused(root, change):
    with edited(root) as content:
        content["annotations"][2] |= change
        content["annotations"][2]["id"] = 4242
    text = refusal(opened, root)
    (key, value), = change.items()
    assert "4242" in text and key in text and repr(value) in text


@pytest.mark.parametrize("number", [-1, "one", 1.5, None, True])
def test_category_ids_are_whole_numbers_from_0(root, number):
    with edited(root) as content:
        content["categories"][0]["id"] = number
        content["annotations"] = []
    assert "category ids" in refusal(opened, root)


def test_category_ids_are_unique_and_names_are_text(root):
    with edited(root) as content:
        content["categories"].append(content["categories"][0] | {"name": "another"})
    assert "'categories' has the id 1 more than once" in refusal(opened, root)
    with edited(root) as content:
        content["categories"].pop()
        content["categories"][0]["name"] = 7
    assert "the category 1 has the name 7" in refusal(opened, root)


def test_a_byte_order_mark_is_no_matter(root):
    before = len(opened(root))
    file_of(root, "train").write_bytes(b"\xef\xbb\xbf" + file_of(root, "train").read_bytes())
    assert len(opened(root)) == before


def test_an_image_id_given_twice_is_refused(root):
    with edited(root) as content:
        content["images"][1]["id"] = 1
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 2]
    text = refusal(opened, root)
    assert "instances_train2017.json" in text and "id 1" in text


def test_an_annotation_id_given_twice_is_no_matter(root):
    """pycocotools would read one of the two twice and the other never."""
    with edited(root) as content:
        content["annotations"][1]["id"] = content["annotations"][0]["id"]
        count = len(content["annotations"])
    assert len(read_annotations(root, "train").anns) == count
