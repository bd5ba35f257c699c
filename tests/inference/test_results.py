import sys

import numpy as np
import pytest
import torch
from PIL import Image

from inference.results import Detection, Detections
from util.errors import UserError


def detections(**values):
    boxes = torch.tensor([[10.0, 20, 50, 60], [0, 0, 5, 5], [30, 30, 40, 90]])
    return Detections(boxes, torch.tensor([0.9, 0.5, 0.25]), torch.tensor([1, 2, 7]), {1: "cell", 2: "plate"},
                      (120, 80), **values)


def test_they_iterate_with_names():
    rows = list(detections())
    assert rows[0] == Detection("cell", 1, pytest.approx(0.9), (10, 20, 50, 60))
    assert [row.name for row in rows] == detections().names == ["cell", "plate", "class 7"]


@pytest.mark.parametrize("index, wanted", [
    (0, ["cell"]), (-1, ["class 7"]), (torch.tensor(1), ["plate"]),
    (np.int64(2), ["class 7"]), (slice(1, None), ["plate", "class 7"]), ([2, 0], ["class 7", "cell"]),
    (torch.tensor([True, False, True]), ["cell", "class 7"])])
def test_a_part_of_them_is_of_their_kind(index, wanted):
    some = detections(path="a.jpg", frame=3)[index]
    assert some.names == wanted and len(some) == len(wanted) == len(some.boxes)
    assert (some.path, some.frame, some.size) == ("a.jpg", 3, (120, 80))


def test_a_place_beyond_the_end_is_an_error():
    with pytest.raises(IndexError):
        detections()[3]
    assert len(detections()[:0]) == 0 and not list(detections()[:0])


def test_they_draw_on_the_image_that_was_kept_given_or_is_in_the_file(tmp_path):
    white = Image.new("RGB", (480, 320), "white")
    white.save(tmp_path / "a.png")
    pictures = [detections(image=white).draw(), detections().draw(white),
                detections(path=str(tmp_path / "a.png")).draw()]
    assert all(np.array_equal(pictures[0], picture) for picture in pictures)
    assert pictures[0].getpixel((10, 40)) != (255, 255, 255)
    for lost in (detections(), detections(path=str(tmp_path / "a.mp4"), frame=0)):
        with pytest.raises(UserError, match="the image was not kept"):
            lost.draw()


def test_cocos_format():
    rows = detections().to_coco(17)
    assert rows[0] == {"image_id": 17, "category_id": 1, "bbox": [10, 20, 40, 40], "score": pytest.approx(0.9)}
    assert "image_id" not in detections().to_coco()[0]


def test_supervisions_format():
    pytest.importorskip("supervision")
    found = detections().to_supervision()
    assert found.xyxy.tolist() == detections().boxes.tolist() and found.class_id.tolist() == [1, 2, 7]
    assert list(found.data["class_name"]) == detections().names and found.confidence[0] == pytest.approx(0.9)
    assert len(found[found.confidence > 0.4]) == 2
    assert len(detections()[:0].to_supervision()) == 0


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(UserError, match="pip install supervision"):
        detections().to_supervision()
