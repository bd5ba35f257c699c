"""Each problem injected into a sound set: found, counted, named, and gone in the corrected copy."""
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.coco import CocoDetection, read_annotations
from datasets.inspection.repair import repair
from datasets.inspection.split import KINDS, inspect_split
from datasets.inspection.statistics import data_warnings, seen_sides, split_statistics, spread
from util.errors import UserError
from util.options import DataOptions

SIZE = (100, 80)  # width, height of every image


@pytest.fixture
def root(tmp_path):
    """Two splits of four noise images; each has one sound box of class 1, the first one of class 2 too."""
    root = tmp_path / "set"
    noise = np.random.default_rng(0)
    (root / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        (root / f"{split}2017").mkdir()
        images = [{"id": i, "file_name": f"{split}{i}.png", "width": SIZE[0], "height": SIZE[1]} for i in range(1, 5)]
        boxes = [{"id": 10 * i, "image_id": i, "category_id": 1, "bbox": [10, 20, 30, 40]} for i in range(1, 5)]
        boxes.append({"id": 11, "image_id": 1, "category_id": 2, "bbox": [0, 0, 50, 50], "area": 2000, "iscrowd": 0})
        for image in images:
            save(root, split, image["id"], Image.fromarray(noise.integers(0, 256, (80, 100, 3), np.uint8)))
        content = {"images": images, "annotations": boxes, "licenses": [],
                   "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]}
        file_of(root, split).write_text(json.dumps(content))
    return root


def file_of(root, split):
    return root / f"annotations/instances_{split}2017.json"


def picture(root, split, number):
    return root / f"{split}2017/{split}{number}.png"


def save(root, split, number, image, **options):
    image.save(picture(root, split, number), **options)


def edit(change, split="train"):
    """A damage that changes the annotation file."""
    def damage(root):
        content = json.loads(file_of(root, split).read_text())
        change(content)
        file_of(root, split).write_text(json.dumps(content))
    return damage


def box(*values, **other):
    """One more annotation, with id 77, of image 3."""
    return edit(lambda content: content["annotations"].append(
        {"id": 77, "image_id": 3, "category_id": 2, "bbox": list(values)} | other))


def image(**change):
    """The third image's entry, changed."""
    return edit(lambda content: content["images"][2].update(change))


def converted(mode):
    def damage(root):
        with Image.open(picture(root, "train", 3)) as old:
            save(root, "train", 3, old.convert(mode))
    return damage


def turned(size):
    """An EXIF orientation of 6 in the third file, and an entry of this size."""
    def damage(root):
        image(width=size[0], height=size[1])(root)
        exif = Image.Exif()
        exif[0x0112] = 6
        with Image.open(picture(root, "train", 3)) as old:
            save(root, "train", 3, old.copy(), exif=exif)
    return damage


def repeated_id(file_name):
    return edit(lambda content: content["images"].append(content["images"][2] | {"file_name": file_name}))


DAMAGES = {  # name: damage, kind, text that names it
    "nan": (box(float("nan"), 1, 2, 3), "not_finite", "train3.png, annotation 77"),
    "infinite": (box(1, 1, float("inf"), 3), "not_finite", "annotation 77"),
    "zero width": (box(5, 5, 0, 10), "empty", "annotation 77"),
    "negative height": (box(5, 50, 10, -10), "empty", "annotation 77"),
    "outside": (box(100, 5, 10, 10), "outside", "annotation 77"),
    "right of the border": (box(90, 5, 20, 10), "clipped", "annotation 77"),
    "left of the border": (box(-3, 5, 20.3, 10), "clipped", "annotation 77"),
    "tiny": (box(5, 5, 0.5, 10), "tiny", "annotation 77"),
    "whole image": (box(0, 0, 100, 80), "whole_image", "annotation 77"),
    "repeated box": (box(10, 20, 30, 40, category_id=1), "repeated_box", "annotation 77"),
    "area": (box(5, 5, 10, 10, area=400), "area", "area 400"),
    "area of no number": (box(5, 5, 10, 10, area="400"), "not_a_box", "annotation 77"),
    "area of nothing": (box(5, 5, 10, 10, area=0), "area", "area 0"),
    "crowd of a wrong type": (box(5, 5, 10, 10, iscrowd="0"), "not_a_crowd", "annotation 77"),
    "unknown image": (box(5, 5, 10, 10, image_id=99), "unknown_image", "99"),
    "image id of a wrong type": (box(5, 5, 10, 10, image_id=[3]), "unknown_image", "[3]"),
    "unknown category": (box(5, 5, 10, 10, category_id=99), "unknown_category", "99"),
    "three numbers": (box(5, 5, 10), "not_a_box", "annotation 77"),
    "no bbox": (edit(lambda content: content["annotations"][0].pop("bbox")), "incomplete", "'bbox'"),
    "no file name": (edit(lambda content: content["images"][2].pop("file_name")), "incomplete", "'file_name'"),
    "no width": (edit(lambda content: content["images"][2].pop("width")), "no_size", "id 3"),
    "width of no number": (image(width="100"), "no_size", "image 3"),
    "width that is not finite": (image(width=float("nan")), "no_size", "image 3"),
    "annotation id": (box(5, 5, 10, 10, id=10), "repeated_annotation_id", "annotation 10"),
    "image id, same file": (repeated_id("train3.png"), "repeated_image_id", "id 3"),
    "image id, other file": (repeated_id("train4.png"), "repeated_image_id", "id 3"),
    "no file": (lambda root: picture(root, "train", 3).unlink(), "missing", "train3.png"),
    "truncated": (lambda root: picture(root, "train", 3).write_bytes(picture(root, "train", 3).read_bytes()[:9000]),
                  "unreadable", "train3.png"),
    "no image": (lambda root: picture(root, "train", 3).write_text("<html>"), "unreadable", "train3.png"),
    "of another size": (image(width=110, height=90), "other_size", "100x80 px, the annotations say 110x90"),
    "annotated turned": (turned(SIZE[::-1]), "turned", "train3.png"),
    "orientation": (turned(SIZE), "orientation", "orientation 6"),
    "grey": (converted("L"), "not_rgb", "train3.png: L"),
    "transparent": (converted("RGBA"), "not_rgb", "RGBA"),
    "16 bits": (converted("I;16"), "deep", "train3.png"),
    "same file": (lambda root: shutil.copy(picture(root, "train", 1), picture(root, "train", 3)), "repeated_file",
                  "train3.png is train1.png"),
    "unlisted": (lambda root: (root / "train2017/notes.txt").write_text("x"), "unlisted", "notes.txt"),
}


def test_a_sound_set_has_no_problems(root, coco_root):
    for folder in (root, coco_root):
        for split in ("train", "val"):
            inspection = inspect_split(folder, split)
            assert not inspection.problems and not inspection.stops()


@pytest.mark.parametrize("name", DAMAGES)
def test_each_problem_is_found_counted_and_named(root, name):
    damage, kind, text = DAMAGES[name]
    damage(root)
    found = inspect_split(root, "train").by_kind()
    # Without its entry, the boxes and the file of an image are on their own.
    assert set(found) - ({"unlisted", "unknown_image"} if name == "no file name" else set()) == {kind}
    assert len(found[kind]) == 1 and text in found[kind][0].text


@pytest.mark.parametrize("name", DAMAGES)
def test_the_corrected_copy_has_no_problem_that_can_be_mended(root, name, tmp_path):
    DAMAGES[name][0](root)
    repair([inspect_split(root, split) for split in ("train", "val")], tmp_path / "new")
    for split in ("train", "val"):
        inspection = inspect_split(tmp_path / "new", split)
        assert not [p for p in inspection.problems if KINDS[p.kind].remedy] and not inspection.stops()
        read_annotations(tmp_path / "new", split)
    dataset = CocoDetection(tmp_path / "new", "train", lambda image, target: (image, target), strict=True)
    assert not any(dataset[i][1]["skipped"] for i in range(len(dataset)))
    gone = DAMAGES[name][1] in ("missing", "unreadable") or name in ("no file name", "image id, other file")
    assert len(dataset) == (3 if gone else 4)


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


def test_boxes_that_are_equal_once_cut_are_one(root, tmp_path):
    for width in (20, 30):
        box(90, 5, width, 10, id=width)(root)
    repair([inspect_split(root, split) for split in ("train", "val")], tmp_path / "new")
    content = json.loads(file_of(tmp_path / "new", "train").read_text())
    assert [a["bbox"] for a in content["annotations"]].count([90, 5, 10, 10]) == 1


def test_a_turned_image_is_turned_in_the_copy_and_others_are_linked(root, tmp_path):
    turned(SIZE[::-1])(root)
    with Image.open(picture(root, "train", 3)) as old:
        wanted = np.asarray(old.transpose(Image.Transpose.ROTATE_270))
    repair([inspect_split(root, split) for split in ("train", "val")], tmp_path / "new")
    with Image.open(picture(tmp_path / "new", "train", 3)) as new:
        assert np.array_equal(np.asarray(new), wanted) and new.getexif().get(0x0112, 1) == 1
    assert picture(tmp_path / "new", "train", 1).samefile(picture(root, "train", 1))
    with Image.open(picture(root, "train", 3)) as old:
        assert old.size == SIZE  # the original is as it was


def test_what_the_copy_refuses(root, tmp_path):
    splits = [inspect_split(root, split) for split in ("train", "val")]
    with pytest.raises(UserError, match="not an empty folder"):
        repair(splits, root)
    shutil.copy(picture(root, "train", 3), root / "outside.png")
    image(file_name="../outside.png")(root)
    with pytest.raises(UserError, match="leads outside"):
        repair([inspect_split(root, "train"), splits[1]], tmp_path / "new")
    assert not (tmp_path / "new/outside.png").exists()
    for number in range(1, 5):
        picture(root, "val", number).unlink()
    with pytest.raises(UserError, match="no image of .*val2017 would be left"):
        repair([splits[0], inspect_split(root, "val")], tmp_path / "other")


@pytest.mark.parametrize("split, stops", [("train", False), ("val", True)])
def test_training_passes_over_an_unreadable_train_image_alone(root, split, stops):
    picture(root, split, 3).unlink()
    assert inspect_split(root, split).stops() == stops


def test_a_split_without_any_readable_image_stops_a_training(root):
    for number in range(1, 5):
        picture(root, "train", number).unlink()
    assert inspect_split(root, "train").stops()


def test_nothing_to_inspect(root):
    for damage, words in [(lambda: shutil.rmtree(root / "train2017"), "no image folder"),
                          (lambda: file_of(root, "train").write_text("{"), "not valid JSON"),
                          (lambda: file_of(root, "train").unlink(), "no annotation file")]:
        damage()
        with pytest.raises(UserError, match=words):
            inspect_split(root, "train")


# numbers

DATA = DataOptions(data_aug_scales=[40, 160], data_aug_max_size=400)


def test_what_training_uses_is_described(root):
    for damage in ("nan", "right of the border", "tiny"):
        DAMAGES[damage][0](root)
    box(1, 2, 3, 4, iscrowd=1)(root)
    inspection = inspect_split(root, "train")
    row = split_statistics(inspection, DATA, finest_stride=8)
    dataset = CocoDetection(root, "train", lambda image, target: (image, target))
    assert row["boxes"] == sum(len(dataset.boxes[i]["boxes"]) for i in dataset.ids) == 7
    assert (row["images"], row["images_without_boxes"], row["crowds"]) == (4, 0, 1)
    assert row["boxes_an_image"] == [1, 1.5, 3] and row["fullest_image"] == "train3.png"
    assert row["classes"] == {"1 cat": {"boxes": 4, "images": 4, "small": 0, "medium": 4, "large": 0},
                              "2 dog": {"boxes": 3, "images": 2, "small": 2, "medium": 1, "large": 0}}
    assert row["sizes"] == [[100, 80, 4]] and row["width"] == [100, 100, 100] and row["aspect_ratio"] == [1.25] * 3
    # At 160 px images are doubled, at 40 px halved.
    assert sorted(seen_sides(inspection, 160, 400)[:, 0].tolist()) == [1, 20, 60, 60, 60, 60, 100]
    assert row["seen"]["below_least"] == 1 and row["seen"]["below_least_at_smallest"] == 1
    assert split_statistics(inspection, DATA, finest_stride=32)["seen"]["below_least_at_smallest"] == 6
    json.dumps(row)


def test_spread():
    assert spread([3, 1, 8]) == [1, 3, 8] and spread([]) == [0, 0, 0]


def told(root, queries=None, data=DATA):
    train, val = (inspect_split(root, split) for split in ("train", "val"))
    described = {split.split: split_statistics(split, data, 8) for split in (train, val)}
    return "\n".join(data_warnings(train, val, described, queries))


def test_warnings_that_matter(root):
    assert told(root) == "classes with fewer than 10 boxes in train: 2 dog (1), 1 cat (4)"
    assert "train1.png has 2 boxes and the model only 1 queries" in told(root, queries=1)
    shutil.copy(picture(root, "train", 1), picture(root, "val", 3))
    assert "1 val images are train images too" in told(root) and "val3.png is train1.png" in told(root)


def test_classes_of_one_split_alone(root):
    edit(lambda content: content["annotations"].pop(), "val")(root)
    assert "2 dog: boxes in train but none in val" in told(root)
    edit(lambda content: content["categories"].__setitem__(0, {"id": 1, "name": "cow"}), "val")(root)
    assert "train and val list different categories: 1 is cat and cow" in told(root)


def test_names_that_both_splits_have(coco_root):
    assert "8 val images have the name of a train image with other content" in told(coco_root)


def test_a_set_without_boxes_can_be_described(root):
    edit(lambda content: content.pop("annotations"))(root)
    row = split_statistics(inspect_split(root, "train"), DATA, 8)
    assert row["boxes"] == 0 and row["images_without_boxes"] == 4 and row["fullest_image"] is None
    assert "boxes in val but none in train" in told(root) and "train: no usable box" in told(root)
    edit(lambda content: content.pop("annotations"), "val")(root)
    assert "val: no usable box" in told(root)


def test_the_rounding_of_clipping_is_not_reported(root, tmp_path):
    generator = torch.Generator().manual_seed(0)
    for number, values in enumerate((torch.rand(50, 4, generator=generator) * 100).tolist()):
        box(*values, id=1000 + number)(root)
    repair([inspect_split(root, split) for split in ("train", "val")], tmp_path / "new")
    assert not inspect_split(tmp_path / "new", "train").by_kind().keys() - {"tiny"}
