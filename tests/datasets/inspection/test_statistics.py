"""Numbers and warnings before a training."""
import json
import shutil

from datasets.coco import CocoDetection
from datasets.inspection.split import inspect_split
from datasets.inspection.statistics import data_warnings, seen_sides, split_statistics, spread
from tests.datasets.inspection.damages import DAMAGES, box, edit, picture
from util.options import DataOptions

DATA = DataOptions(data_aug_scales=[40, 160], data_aug_max_size=400)


def test_what_training_uses_is_described(root):
    for damage in ("nan", "right of the border", "tiny"):
        DAMAGES[damage][0](root)
    box(1, 2, 3, 4, iscrowd=1)(root)
    inspection = inspect_split(root, "train")
    row = split_statistics(inspection, DATA, finest_stride=8)
    dataset = CocoDetection(root, "train", lambda image, target: (image, target))
    assert row["boxes"] == sum(len(dataset.boxes(i)["boxes"]) for i in range(len(dataset))) == 7
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


def test_more_objects_than_an_evaluation_counts(root):
    assert "that COCO counts" not in told(root)
    many = [{"id": 100 + k, "image_id": 1, "category_id": 1, "bbox": [k % 20 * 4, k // 20 * 4, 3, 3]}
            for k in range(130)]
    edit(lambda content: content["annotations"].extend(many))(root)
    assert "that COCO counts" not in told(root)  # train is not evaluated
    edit(lambda content: content.update(annotations=many), "val")(root)
    assert "val: 30 of the objects, in 1 of the images, are beyond the 100 detections" in told(root)


def test_names_that_both_splits_have(coco_root):
    assert "8 val images have the name of a train image with other content" in told(coco_root)


def test_a_set_without_boxes_can_be_described(root):
    edit(lambda content: content.pop("annotations"))(root)
    row = split_statistics(inspect_split(root, "train"), DATA, 8)
    assert row["boxes"] == 0 and row["images_without_boxes"] == 4 and row["fullest_image"] is None
    assert "boxes in val but none in train" in told(root) and "train: no usable box" in told(root)
    edit(lambda content: content.pop("annotations"), "val")(root)
    assert "val: no usable box" in told(root)
