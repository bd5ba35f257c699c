"""Data sets as other programs write them: read for what they are, or told how to name their places."""
import shlex
import shutil

import pytest

from datasets.data import DetectionData
from datasets.formats.inner_paths import OUTSIDE
from tests.datasets.formats.layouts import COUNTS, boxes_of, opened, stem, write_coco, write_voc, write_yolo
from util.config import parse_pairs
from util.errors import UserError
from util.options import DataOptions, checked

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
        (root / name).write_text("".join(f"C:\\darknet\\data\\obj\\{stem(split, i)}.png\r\n" for i in range(COUNTS[split])))
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
        [f"{tmp_path}/set/data.yaml: test: '../test/images' {OUTSIDE.format(top=tmp_path / 'set')}. There is no test set "
         "then"] if write is roboflow_yolo else
        [f"{tmp_path}/set/{name}: {COUNTS[split]} paths are not there and mean files below {tmp_path}/set, such as "
         f"'C:\\\\darknet\\\\data\\\\obj\\\\{split}_0.png': {tmp_path}/set/obj/{split}_0.png"
         for split, name in (("train", "train.txt"), ("val", "valid.txt"))] if write is darknet else [])


# what is of no layout: the error says which options read it, and they do

def label_studio(root):
    write_yolo(root)
    for what in ("images", "labels"):
        for path in (root / what / "train").iterdir():
            path.rename(root / what / path.name)
        shutil.rmtree(root / what / "train"), shutil.rmtree(root / what / "val")
    (root / "data.yaml").unlink()
    (root / "classes.txt").write_text("ant\nbee\ncat")
    (root / "notes.json").write_text('{"categories": [{"id": 0, "name": "ant"}], "info": {}}')


def cvat_yolo(root):
    darknet(root)
    (root / "data.yaml").unlink()
    (root / "obj").rename(root / "obj_train_data")
    for path in (root / "obj_train_data").glob("val_*"):
        path.unlink()
    (root / "valid.txt").unlink()
    (root / "obj.names").write_text("ant\nbee\ncat\n")
    (root / "obj.data").write_text("classes = 3\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n")


def folders_of_splits(root):
    """Without a yaml file."""
    roboflow_yolo(root)
    (root / "data.yaml").unlink()
    (root / "classes.txt").write_text("ant\nbee\ncat\n")


def images_and_labels_of_splits(root):
    write_yolo(root)
    (root / "data.yaml").unlink()
    for split in COUNTS:
        (root / f"labels/{split}/classes.txt").write_text("ant\nbee\ncat\n")


def label_img(root):
    write_voc(root)
    (root / "Annotations").rename(root / "pictures")
    for path in (root / "JPEGImages").glob("train*"):
        path.rename(root / "pictures" / path.name)
    for path in (root / "pictures").glob("val*"):
        path.unlink()
    shutil.rmtree(root / "JPEGImages"), shutil.rmtree(root / "ImageSets")


def cvat_coco(root):
    write_coco(root, ("images", "b"), ("annotations/instances_default.json", "b.json"))
    shutil.rmtree(root / "b"), (root / "b.json").unlink()


def one_json(root):
    write_coco(root, ("my images", "b"), ("boxes.json", "b.json"))
    shutil.rmtree(root / "b"), (root / "b.json").unlink()


def unsplit_roboflow(root):
    write_coco(root, (".", "b"), ("_annotations.coco.json", "b.json"))
    shutil.rmtree(root / "b"), (root / "b.json").unlink()


def years(root):
    for year in ("VOC2007", "VOC2012"):
        voc_2012(root / year)


def options_in(message):
    pairs = parse_pairs(shlex.split(message.partition("--options ")[2]))
    return DataOptions(**{name: checked(name, value) for name, value in pairs.items()})


UNKNOWN = [label_studio, cvat_yolo, folders_of_splits, images_and_labels_of_splits, label_img, cvat_coco, one_json,
           unsplit_roboflow, years]


@pytest.mark.parametrize("write", UNKNOWN)
def test_the_error_names_options_that_read_what_is_there(tmp_path, write):
    write(tmp_path / "set")
    with pytest.raises(UserError, match="known layout.*Its places are named so, in place of --data: --options ") as error:
        DetectionData(tmp_path / "set")
    data = DetectionData(None, options_in(str(error.value)))
    tables = [data.split(split).table for split in COUNTS]
    of_split = write in (folders_of_splits, images_and_labels_of_splits)
    assert sum(map(len, tables)) == {years: 20}.get(write, 10 if of_split else COUNTS["train"])
    splits = [name for name in COUNTS if of_split or name == "train" or write is years]
    wanted = [box for split in splits for i in range(COUNTS[split]) for box in boxes_of(split, i)] * (2 if write is years else 1)
    found = [(data.split("train").table.names[int(label)], *box) for table in tables
             for label, box in zip(table.labels, table.boxes.tolist())]
    assert sorted(found) == sorted((["ant", "bee", "cat"][label], *box) for label, *box in wanted)


def test_a_folder_with_a_set_in_it_is_told(tmp_path):
    write_yolo(tmp_path / "outer/set")
    with pytest.raises(UserError, match="But .*outer/set may: pass that as --data"):
        DetectionData(tmp_path / "outer")
    (tmp_path / "yaml").mkdir()
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / "yaml" / name).touch()
    with pytest.raises(UserError, match="If .*a.yaml or .*b.yaml describes a YOLO data set, pass that file"):
        DetectionData(tmp_path / "yaml")


def test_label_files_without_names_are_told_what_they_lack(tmp_path):
    label_studio(tmp_path / "set")
    (tmp_path / "set/classes.txt").unlink()
    (tmp_path / "set/notes.json").unlink()
    with pytest.raises(UserError, match="train_annotations=.*set/labels val_fraction=0.1, with classes.txt among"):
        DetectionData(tmp_path / "set")


def test_an_annotation_file_as_the_path_is_told_its_places(tmp_path):
    cvat_coco(tmp_path / "set")
    file = tmp_path / "set/annotations/instances_default.json"
    with pytest.raises(UserError, match="train_annotations=.*instances_default.json") as error:
        DetectionData(file)
    options = options_in(str(error.value))
    assert (options.train_images, options.train_annotations) == ([str(tmp_path / "set/images")], [str(file)])
