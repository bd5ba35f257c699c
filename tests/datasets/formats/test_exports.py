"""Data sets as other programs write them."""
import shutil

import pytest

from datasets.data import DetectionData
from datasets.formats.inner_paths import OUTSIDE
from tests.datasets.formats.layouts import COUNTS, boxes_of, opened, stem, write_voc, write_yolo

ROBOFLOW_YAML = """train: ../train/images
val: ../valid/images
test: ../test/images

nc: 3
names: ['ant', 'bee', 'cat']

roboflow:
  workspace: animals
  project: animals-1
  version: 1
  license: CC BY 4.0
  url: https://universe.roboflow.com/animals
"""
ULTRALYTICS_YAML = """# Ultralytics AGPL-3.0 License
path: ../datasets/animals # dataset root dir
train: images/train2017 # train images (relative to 'path')
val: images/val2017 # val images (relative to 'path')
test: # test images (optional)

# Classes
names:
  0: ant
  1: bee
  2: cat

# Download script/URL (optional)
download: |
  from ultralytics.utils.downloads import download
  download(['https://example.org/a.zip'], dir='..')
"""
VOC_OBJECT = """  <object>
    <name>{name}</name><pose>Unspecified</pose><truncated>0</truncated><occluded>1</occluded>
    <difficult>0</difficult>
    <bndbox><xmax>{right}</xmax><xmin>{left}</xmin><ymax>{below}</ymax><ymin>{above}</ymin></bndbox>
    <part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>3</xmax><ymax>3</ymax></bndbox></part>
    <polygon><x1>1</x1><y1>2</y1><x2>5</x2><y2>2</y2></polygon>
  </object>
"""


def roboflow_yolo(root):
    write_yolo(root, ROBOFLOW_YAML)
    for split, folder in (("train", "train"), ("val", "valid")):
        (root / folder).mkdir()
        for what in ("images", "labels"):
            (root / what / split).rename(root / folder / what)
    for what in ("images", "labels"):
        (root / what).rmdir()
    (root / "README.roboflow.txt").write_text("animals\n")


def ultralytics(root):
    write_yolo(root, ULTRALYTICS_YAML)
    for split in COUNTS:
        for what in ("images", "labels"):
            (root / what / split).rename(root / what / f"{split}2017")


def darknet(root):
    """Images and labels in one folder, lists with the paths of another machine."""
    write_yolo(root, "train: train.txt\nval: valid.txt\nnames: [ant, bee, cat]\n")
    (root / "obj").mkdir()
    for split, name in (("train", "train.txt"), ("val", "valid.txt")):
        for what in ("images", "labels"):
            for path in (root / what / split).iterdir():
                path.rename(root / "obj" / path.name)
        names = [stem(split, i) for i in range(COUNTS[split])]
        (root / name).write_text("".join(f"C:\\darknet\\data\\obj\\{image}.png\r\n" for image in names))
    shutil.rmtree(root / "images"), shutil.rmtree(root / "labels")


def voc_2012(root):
    write_voc(root)
    sets = root / "ImageSets/Main"
    for split, count in COUNTS.items():
        for index in range(count):
            objects = "".join(VOC_OBJECT.format(name=["ant", "bee", "cat"][label], left=x + 1, above=y + 1, right=x + w,
                                                below=y + h) for label, x, y, w, h in boxes_of(split, index))
            (root / f"Annotations/{stem(split, index)}.xml").write_text(
                f"<annotation>\n  <folder>VOC2012</folder>\n  <filename>{stem(split, index)}.png</filename>\n"
                "  <source><database>The VOC2008 Database</database></source>\n"
                "  <size><width>64</width><height>128</height><depth>3</depth></size>\n  <segmented>0</segmented>\n"
                f"{objects}</annotation>\n")
        (sets / f"ant_{split}.txt").write_text("".join(f"{stem(split, i)} {i % 2 * 2 - 1:2d}\n" for i in range(count)))
    (sets / "trainval.txt").write_text((sets / "train.txt").read_text() + (sets / "val.txt").read_text())
    (root / "SegmentationClass").mkdir()


@pytest.mark.parametrize("write", [roboflow_yolo, ultralytics, darknet, voc_2012])
def test_what_other_programs_write_is_the_same_set(tmp_path, write, caplog):
    write(tmp_path / "set")
    data, wanted = DetectionData(tmp_path / "set"), opened("coco", tmp_path / "coco")
    assert set(data.sources) == set(COUNTS)
    for split in COUNTS:
        found, its = (each.split(split).table for each in (data, wanted))
        assert [name.rpartition("/")[2] for name in found.file_names] == list(its.file_names)
        assert found.boxes.tolist() == its.boxes.tolist() and found.names == its.names
        assert found.labels.tolist() == its.labels.tolist() and not found.crowds.any()
    assert [record.message for record in caplog.records] == (
        [f"{tmp_path}/set/data.yaml: test: '../test/images' {OUTSIDE.format(top=tmp_path / 'set')}. There is no test "
         "set then"] if write is roboflow_yolo else
        [f"{tmp_path}/set/{name}: {COUNTS[split]} paths are not there and mean files below {tmp_path}/set, such as "
         f"'C:\\\\darknet\\\\data\\\\obj\\\\{split}_0.png': {tmp_path}/set/obj/{split}_0.png"
         for split, name in (("train", "train.txt"), ("val", "valid.txt"))] if write is darknet else [])
