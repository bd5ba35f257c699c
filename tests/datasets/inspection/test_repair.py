"""The corrected copy has none of the problems that can be fixed."""
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.benchmark_facts import NEGATIVE, NOT_EXHAUSTIVE
from datasets.coco import CocoDetection, class_names, read_annotations
from datasets.inspection.repair import repair
from datasets.inspection.split import KINDS, inspect_split
from tests.datasets.inspection.damages import DAMAGES, SIZE, box, edit, file_of, image, picture, turned
from util.errors import UserError


def untouched(root, split):
    return CocoDetection(root, split, lambda image, target: (image, target), strict=True)


@pytest.mark.parametrize("name", DAMAGES)
def test_the_corrected_copy_has_no_problem_that_can_be_fixed(root, name, tmp_path):
    DAMAGES[name][0](root)
    repair([inspect_split(root, split) for split in ("train", "val")], tmp_path / "new")
    for split in ("train", "val"):
        inspection = inspect_split(tmp_path / "new", split)
        assert not [p for p in inspection.problems if KINDS[p.kind].remedy] and not inspection.stops()
        read_annotations(tmp_path / "new", split)
    dataset = untouched(tmp_path / "new", "train")
    assert not any(dataset[i][1]["skipped"] for i in range(len(dataset)))
    gone = DAMAGES[name][1] in ("missing", "unreadable") or name in ("no file name", "image id, other file")
    assert len(dataset) == (3 if gone else 4)


def test_boxes_that_are_equal_once_cut_are_one(root, tmp_path):
    for width in (20, 30):
        box(90, 5, width, 10, id=width)(root)
    repair([inspect_split(root, split) for split in ("train", "val")], tmp_path / "new")
    content = json.loads(file_of(tmp_path / "new", "train").read_text())
    assert [a["bbox"] for a in content["annotations"]].count([90, 5, 10, 10]) == 1


def test_boxes_of_a_stored_picture_are_turned_with_it(root, tmp_path):
    with Image.open(picture(root, "train", 3)) as old:
        old.paste((255, 255, 255), (10, 20, 40, 60))  # its box
        old.save(picture(root, "train", 3))
    turned(SIZE)(root)
    before = untouched(root, "train")[2]
    repair([inspect_split(root, split) for split in ("train", "val")], tmp_path / "new")
    assert not inspect_split(tmp_path / "new", "train").by_kind().keys() & {"stored", "other_size"}
    image, target = untouched(tmp_path / "new", "train")[2]
    assert before[0].size == SIZE and image.size == SIZE[::-1]
    assert target["boxes"].tolist() == [[20, 10, 60, 40]]  # turned by 90 degrees clockwise in 80 x 100 px
    assert np.asarray(image.crop((20, 10, 60, 40))).min() == 255
    assert picture(tmp_path / "new", "train", 3).samefile(picture(root, "train", 3))


def test_an_upright_picture_is_left_alone(root, tmp_path):
    turned(SIZE[::-1])(root)
    inspection = inspect_split(root, "train")
    assert not inspection.problems
    repair([inspection, inspect_split(root, "val")], tmp_path / "new")
    assert json.loads(file_of(tmp_path / "new", "train").read_text())["images"][2]["width"] == SIZE[1]


@pytest.mark.parametrize("change", [
    {"area": None}, {"area": 0}, {"area": -1}, {"area": float("nan")}, {"area": 1.0}, {"area": "1200"},
    {"iscrowd": None}, {"iscrowd": "0"}, {"iscrowd": False}, {"id": None}, {"segmentation": None}])
def test_what_can_be_derived_costs_no_annotation(root, change, tmp_path):
    def change_all(content):
        for annotation in content["annotations"]:
            annotation.update(change)

    edit(change_all)(root)
    repair([inspect_split(root, split) for split in ("train", "val")], tmp_path / "new")
    fixed = json.loads(file_of(tmp_path / "new", "train").read_text())["annotations"]
    assert [a["bbox"] for a in fixed] == [[10, 20, 30, 40]] * 4 + [[0, 0, 50, 50]]
    assert [a["iscrowd"] for a in fixed] == [0] * 5 and [a["id"] for a in fixed] == [1, 2, 3, 4, 5]
    large = 2500 if "area" in change else 2000  # of several boxes, an area for all says nothing
    assert [a["area"] for a in fixed] == [1200] * 4 + [large]


def test_large_category_ids_become_the_same_small_ones_in_both_splits(root, tmp_path):
    def enlarge(content):
        content["categories"] = [{"id": 74673216, "name": "dog"}, {"id": 5, "name": "cat"}]
        for annotation in content["annotations"]:
            annotation["category_id"] = {1: 5, 2: 74673216}[annotation["category_id"]]
        content["images"][0] |= {NEGATIVE: [74673216, 6], NOT_EXHAUSTIVE: [5]}

    edit(enlarge)(root)
    edit(enlarge, "val")(root)
    edit(lambda content: content["categories"].append({"id": 7, "name": "cow"}), "val")(root)
    repair([inspect_split(root, split) for split in ("train", "val")], tmp_path / "new")
    for split, wanted in (("train", {1: "cat", 3: "dog"}), ("val", {1: "cat", 2: "cow", 3: "dog"})):
        coco = read_annotations(tmp_path / "new", split)
        assert class_names(coco) == wanted
        assert sorted(a["category_id"] for a in coco.dataset["annotations"]) == [1, 1, 1, 1, 3]
        lists = [(image[NEGATIVE], image[NOT_EXHAUSTIVE]) for image in coco.dataset["images"]]
        assert lists == [([3], [1])] + [([], [])] * 3


def test_names_of_other_systems_are_written_as_the_files_are_called(root, tmp_path):
    image(file_name=".\\TRAIN3.png")(root)
    repair([inspect_split(root, split) for split in ("train", "val")], tmp_path / "new")
    names = [i["file_name"] for i in json.loads(file_of(tmp_path / "new", "train").read_text())["images"]]
    assert names == [f"train{number}.png" for number in range(1, 5)]


def test_what_the_copy_refuses(root, tmp_path):
    splits = [inspect_split(root, split) for split in ("train", "val")]
    with pytest.raises(UserError, match="not an empty folder"):
        repair(splits, root)
    shutil.copy(picture(root, "train", 3), root / "outside.png")
    for name in ("../outside.png", "..\\outside.png", str(root / "outside.png")):
        image(file_name=name)(root)
        with pytest.raises(UserError, match="leads outside"):
            inspect_split(root, "train")
    for number in range(1, 5):
        picture(root, "val", number).unlink()
    with pytest.raises(UserError, match="no image of .*val2017 would be left"):
        repair([splits[0], inspect_split(root, "val")], tmp_path / "other")


def test_the_rounding_of_clipping_is_not_reported(root, tmp_path):
    generator = torch.Generator().manual_seed(0)
    for number, values in enumerate((torch.rand(50, 4, generator=generator) * 100).tolist()):
        box(*values, id=1000 + number)(root)
    repair([inspect_split(root, split) for split in ("train", "val")], tmp_path / "new")
    assert not inspect_split(tmp_path / "new", "train").by_kind().keys() - {"tiny"}


def test_all_problems_at_once(root, tmp_path):
    names = [name for name in DAMAGES if DAMAGES[name][1] in ("not_finite", "empty", "outside", "clipped", "tiny",
                                                              "unknown_image", "unknown_category", "not_a_box")]
    for name in names:
        DAMAGES[name][0](root)
    picture(root, "train", 4).unlink()
    inspection = inspect_split(root, "train")
    kinds = {kind: len(problems) for kind, problems in inspection.by_kind().items()}
    assert kinds == {"unknown_category": 1, "unknown_image": 2, "not_a_box": 2, "repeated_annotation_id": 7,
                     "missing": 1, "not_finite": 2, "empty": 2, "outside": 1, "clipped": 2, "tiny": 1}
    numbers = repair([inspection, inspect_split(root, "val")], tmp_path / "new")
    assert numbers["train"] == {"images": (4, 3), "annotations": (5 + len(names), 4 + 3)}
    content = json.loads(file_of(tmp_path / "new", "train").read_text())
    assert [a["id"] for a in content["annotations"]] == list(range(1, 8))
    assert [90, 5, 10, 10] in [a["bbox"] for a in content["annotations"]]
    assert content["licenses"] == []
