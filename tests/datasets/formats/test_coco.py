"""COCO's and Roboflow's folders are told apart, and their splits found."""
import pytest

from datasets.formats import find_layout
from datasets.formats.coco import coco_2017, roboflow
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
