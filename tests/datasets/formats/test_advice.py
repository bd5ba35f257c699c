"""What is of no layout: the error says which options read it, and they do."""
import shlex
import shutil

import pytest

from datasets.data import DetectionData
from tests.datasets.formats.layouts import COUNTS, boxes_of, write_coco, write_voc, write_yolo
from tests.datasets.formats.test_exports import darknet, roboflow_yolo, voc_2012
from util.config import parse_pairs
from util.errors import UserError
from util.options import DataOptions, checked


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
    with pytest.raises(UserError, match="known layout.*Its places are named so, in place of --data: --options ") as e:
        DetectionData(tmp_path / "set")
    data = DetectionData(None, options_in(str(e.value)))
    tables = [data.split(split).table for split in COUNTS]
    of_split = write in (folders_of_splits, images_and_labels_of_splits)
    assert sum(map(len, tables)) == {years: 20}.get(write, 10 if of_split else COUNTS["train"])
    splits = [name for name in COUNTS if of_split or name == "train" or write is years]
    wanted = [box for split in splits for i in range(COUNTS[split]) for box in boxes_of(split, i)]
    wanted *= 2 if write is years else 1
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
