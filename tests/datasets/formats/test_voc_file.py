"""The boxes of Pascal VOC's xml files, and their usual damages."""
import logging

import pytest
from PIL import Image

from datasets.coco import CocoDetection
from datasets.data import DetectionData
from datasets.inspection.repair import repair
from datasets.inspection.split import inspect_split
from tests.datasets.formats.layouts import COUNTS, boxes_of, stem, voc_xml, write_voc
from util.errors import UserError


@pytest.fixture
def root(tmp_path):
    return write_voc(tmp_path / "VOC2007")


def xml(root, index=0, split="train"):
    return root / f"Annotations/{stem(split, index)}.xml"


def edited(root, old, new, index=0):
    text = xml(root, index).read_text()
    assert old in text
    xml(root, index).write_text(text.replace(old, new, 1))


def table(root, split="train"):
    return DetectionData(root).split(split).table


def test_boxes_are_from_pixel_to_pixel_counted_from_1(root):
    first = table(root).boxes[table(root).boxes_of(0)].tolist()
    assert first == [[x, y, w, h] for _, x, y, w, h in boxes_of("train", 0)]


def test_difficult_objects_are_crowds(root):
    xml(root).write_text(voc_xml("train", 0, difficult="    <difficult>1</difficult>\n"))
    found = table(root)
    assert found.crowds[found.boxes_of(0)].all() and not found.crowds[found.boxes_of(1)].any()
    assert len(CocoDetection(root, "train", lambda image, target: (image, target))[0][1]["labels"]) == 0


@pytest.mark.parametrize("size", [None, (0, 0), ("x", 3), ("nan", 5)])
def test_a_size_that_is_left_out_is_the_files(root, size, caplog):
    xml(root).write_text(voc_xml("train", 0, size=size))
    with caplog.at_level(logging.INFO):
        assert table(root).size(0) == (64, 128)
    assert "derived 1 image sizes that are left out" in caplog.text


DAMAGES = {  # what is changed, the line, what is said
    "no name": ("<name>", "<nom>", "no valid XML"), "no box": ("bndbox>", "box>", "no valid XML"),
    "an empty name": ("<name>", "<name></name><x>", "no valid XML"),
    "a word": ("<xmin>", "<xmin>x", "line 7: xmin must be a number, got 'x"),
    "not finite": ("<ymax>", "<ymax>nan</ymax><ymax>", "line 7: ymax must be a number, got 'nan'"),
    "no corner": ("<xmax>", "<xmax/><xmax>", "line 7: no xmax"),
    "no flag": ("<bndbox>", "<difficult>perhaps</difficult><bndbox>",
                "line 7: difficult must be 0 or 1, got 'perhaps'"),
    "no box at all": ("<bndbox>", "<bndbox/><bndbox>", "line 7: no xmin"),
    "no class": ("<name>", "<name/><name>", "line 7: no name"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damages_are_named_by_file_and_line_and_left_out_of_a_copy(root, tmp_path, name):
    old, new, words = DAMAGES[name]
    edited(root, old, new)
    with pytest.raises(UserError, match=rf"Annotations: .*train_0.xml, line \d+.*{words.rpartition(': ')[2]}"):
        table(root)
    splits = [inspect_split(root, split) for split in COUNTS]
    problems = splits[0].by_kind()["bad_line"]
    assert len(problems) == 1 and words in problems[0].text and splits[0].stops()
    repair(splits, tmp_path / "new")
    lost = len(boxes_of("train", 0)) if words == "no valid XML" else 1
    before = sum(len(boxes_of("train", i)) for i in range(COUNTS["train"]))
    assert len(table(tmp_path / "new").boxes) == before - lost and len(table(tmp_path / "new")) == COUNTS["train"]


def test_boxes_that_may_be_counted_from_0_are_told(root, caplog):
    first = boxes_of("train", 0)[0]
    edited(root, f"<xmin>{first[1] + 1}<", "<xmin>0<")
    table(root)
    assert "1 files with boxes from pixel 0, where Pascal VOC counts from 1" in caplog.text
    assert "train_0.xml" in caplog.text


def test_an_xml_file_of_another_kind_is_refused(root):
    xml(root).write_text("<annotations><image/></annotations>")
    with pytest.raises(UserError, match="train_0.xml, line 1: <annotations> where Pascal VOC has <annotation>"):
        table(root)


def test_a_photo_whose_size_is_stated_before_it_is_turned(root, caplog):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 128)).save(root / "JPEGImages/train_0.png", exif=exif)
    picture, target = CocoDetection(root, "train", lambda image, target: (image, target))[0]
    assert picture.size == (64, 128) and "1 images, such as train_0.png, have an EXIF orientation" in caplog.text
    assert target["boxes"].tolist() == [[x, y, x + w, y + h] for _, x, y, w, h in boxes_of("train", 0)]
