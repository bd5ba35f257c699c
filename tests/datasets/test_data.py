"""A data set in any layout: the same set is the same, and what splits there are."""
import json
import logging

import pytest
import torch

from datasets.coco import CocoDetection
from datasets.coco_eval import coco_results, summarize
from datasets.data import DetectionData
from datasets.inspection.repair import repair
from datasets.inspection.split import inspect_split
from datasets.transforms import val_transforms
from tests.datasets.formats.layouts import COUNTS, EVERY, NAMES, digests, opened, stem, write_yolo
from util.errors import UserError
from util.options import DataOptions


def numbers(data):
    """COCO's twelve numbers of boxes near those of the val set."""
    dataset = CocoDetection(data, "val", val_transforms(DataOptions()))
    found = {}
    for index, image_id in enumerate(dataset.ids):
        target = dataset.boxes(index)
        rows = {"scores": torch.linspace(0.99, 0.5, len(target["labels"])) - index / 1000, "labels": target["labels"],
                "boxes": target["boxes"] + torch.tensor([2.0, 0, 2, 0])}
        found |= coco_results([image_id], [rows], dataset.names)
    return summarize(dataset.coco, found).stats


@pytest.mark.parametrize("name", EVERY[1:])
def test_the_same_set_in_another_layout_has_the_same_targets_hashes_and_ap(tmp_path, name):
    coco, other = opened("coco", tmp_path / "coco"), opened(name, tmp_path / "other")
    assert digests(other) == digests(coco)
    assert numbers(other) == numbers(coco) and 0.1 < numbers(coco)[0] < 1
    assert other.split("val").table.names == dict(enumerate(NAMES, 1))


@pytest.mark.parametrize("name", EVERY)
def test_every_layout_is_inspected_and_written_as_coco(tmp_path, name):
    data = opened(name, tmp_path / "set")
    splits = [inspect_split(data, split) for split in ("train", "val")]
    assert not any(split.problems or split.stops() for split in splits)
    assert [len(split.images) for split in splits] == list(COUNTS.values())
    assert len({file.digest for split in splits for file in split.files.values()}) == sum(COUNTS.values())
    repair(splits, tmp_path / "new")
    assert digests(DetectionData(tmp_path / "new")) == digests(data)


def test_roboflows_root_category_is_left_out_and_told(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        names = opened("roboflow", tmp_path / "set").split("train").table.names
    assert names == {1: "ant", 2: "bee", 3: "cat"} and "the category 'animals', id 0, is the root" in caplog.text
    path = tmp_path / "set/train/_annotations.coco.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["category_id"] = 0
    path.write_text(json.dumps(content))
    assert DetectionData(tmp_path / "set").split("train").table.names == {0: "animals", 1: "ant", 2: "bee", 3: "cat"}


def test_what_is_no_data_set_says_what_would_be(tmp_path):
    with pytest.raises(UserError, match="known layout.*COCO 2017.*Roboflow.*YOLO.*Pascal VOC.*train_images"):
        DetectionData(tmp_path)
    with pytest.raises(UserError, match="no folder .*nowhere"):
        DetectionData(tmp_path / "nowhere")
    with pytest.raises(UserError, match="pass --data PATH"):
        DetectionData(None)


# splits

def test_a_val_set_is_split_off_by_seed(tmp_path):
    def split_off(**options):
        data = DetectionData(tmp_path / "set", DataOptions(val_fraction=0.3, **options))
        names = {split: list(data.split(split).table.file_names) for split in ("train", "val")}
        assert sorted(names["train"] + names["val"]) == [f"{stem('train', i)}.png" for i in range(6)]
        assert [len(part) for part in names.values()] == [4, 2] and not data.shared_images()
        assert digests(data).keys() == {"train", "val"}
        return names["val"]

    write_yolo(tmp_path / "set", "train: images/train\nnames: [ant, bee, cat]\n")
    assert split_off() == split_off()
    assert len({tuple(split_off(val_seed=seed)) for seed in range(5)}) > 1
    with pytest.raises(UserError, match="no val set in .*set.*--options val_fraction=0.1 splits"):
        DetectionData(tmp_path / "set").split("val")


def test_a_val_set_that_is_there_is_not_split_off_again(tmp_path):
    with pytest.raises(UserError, match="val_fraction=0.1 is for data without a val set.*set val"):
        opened("yolo", tmp_path / "set", val_fraction=0.1)


def test_images_in_both_splits_are_named(tmp_path):
    write_yolo(tmp_path / "set", "train: images\nval: images/val\nnames: [ant, bee, cat]\n")
    shared = DetectionData(tmp_path / "set").shared_images()
    assert shared == [str(tmp_path / f"set/images/val/{stem('val', i)}.png") for i in range(4)]
    assert not opened("coco", tmp_path / "coco").shared_images()
