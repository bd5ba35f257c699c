"""Files in places of their own."""
import pytest

from datasets.data import DetectionData
from tests.datasets.formats.layouts import write_layout, write_places
from util.errors import UserError
from util.options import DataOptions


@pytest.mark.parametrize("change, words", [
    ({"train_annotations": None}, "train_images and train_annotations must name as many places"),
    ({"train_images": ["nowhere"]}, "train_images: no folder nowhere"),
    ({"train_annotations": ["setup.cfg"]}, "setup.cfg is no COCO file"),
])
def test_places_that_are_not_there_are_named(tmp_path, change, words):
    places = write_places(tmp_path / "set") | change
    with pytest.raises(UserError, match=words):
        DetectionData(None, DataOptions(**places))


def test_places_take_the_place_of_a_layouts_splits(tmp_path):
    path, _ = write_layout("yolo", tmp_path / "yolo")
    places = write_places(tmp_path / "other")
    data = DetectionData(path, DataOptions(**{name: places[name] for name in ("val_images", "val_annotations")}))
    assert data.source("val").annotations.name == "val.json" and data.source("train").annotations.name == "data.yaml"
