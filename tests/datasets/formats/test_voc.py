"""Pascal VOC's layout, and its usual damages."""
import os
import unicodedata

import pytest

from datasets.coco import CocoDetection
from datasets.data import DetectionData
from datasets.inspection.repair import repair
from datasets.inspection.split import inspect_split
from tests.datasets.formats.layouts import COUNTS, save, stem, write_voc
from util.errors import UserError
from util.options import DataOptions


@pytest.fixture
def root(tmp_path):
    return write_voc(tmp_path / "VOC2007")


def xml(root, index=0, split="train"):
    return root / f"Annotations/{stem(split, index)}.xml"


def table(root, split="train"):
    return DetectionData(root).split(split).table


def test_a_list_may_say_more_than_names(root):
    (root / "ImageSets/Main/train.txt").write_text(f"{stem('train', 1)}  1\n\n{stem('train', 0)} -1\n")
    assert list(table(root).file_names) == ["train_0.png", "train_1.png"]


def test_without_lists_everything_is_the_train_set(root):
    for split in COUNTS:
        (root / f"ImageSets/Main/{split}.txt").unlink()
    assert len(table(root)) == sum(COUNTS.values())
    assert len(DetectionData(root, DataOptions(val_fraction=0.2)).split("val").table) == 2


def test_trainval_stands_for_train(root):
    (root / "ImageSets/Main/train.txt").rename(root / "ImageSets/Main/trainval.txt")
    assert len(table(root)) == COUNTS["train"]


def test_classes_are_those_of_all_splits(root):
    xml(root).write_text(xml(root).read_text().replace("<name>", "<name>a", 1))
    assert table(root).names == table(root, "val").names and 4 == len(table(root).names)


def test_an_image_without_a_file_is_one_without_objects_and_told(root, caplog):
    xml(root).unlink()
    assert len(table(root)) == COUNTS["train"] and "1 images without an annotation file" in caplog.text
    assert "train_0.png: no" in caplog.text
    for index in range(COUNTS["train"]):
        xml(root, index).unlink(missing_ok=True)
    with pytest.raises(UserError, match="none of the 6 images"):
        table(root)


def test_an_image_that_is_missing_is_passed_over_in_training_only(root, caplog):
    for split in COUNTS:
        (root / f"JPEGImages/{stem(split, 0)}.png").unlink()
    assert len(CocoDetection(root, "train", None)) == COUNTS["train"] - 1 and "train_0.jpg; skipped" in caplog.text
    with pytest.raises(UserError, match="val_0.jpg"):
        CocoDetection(root, "val", None)


def test_images_of_one_name_are_named(root, tmp_path):
    save("train", 0, tmp_path)
    (tmp_path / "train_0.png").rename(root / "JPEGImages/train_0.jpeg")
    with pytest.raises(UserError, match="train_0.jpeg and train_0.png in .*JPEGImages are images of one name"):
        table(root)
    splits = [inspect_split(root, split) for split in COUNTS]
    repair(splits, tmp_path / "new")
    assert list(table(tmp_path / "new").file_names) == [f"train_{i}.png" for i in range(1, 6)]


@pytest.mark.parametrize("name", ["../../outside", "/etc/hostname", "a\\b", ".."])
def test_a_list_leads_to_no_other_folder(root, name):
    with (root / "ImageSets/Main/train.txt").open("a") as file:
        file.write(f"{name}\n")
    with pytest.raises(UserError, match="train.txt, line 7: .* is no name of an image"):
        table(root)


def test_what_is_missing_is_named(root):
    (root / "ImageSets/Main/train.txt").write_text("\n")
    with pytest.raises(UserError, match="train.txt: no image is listed"):
        table(root)
    (root / "JPEGImages").rename(root / "Images")
    with pytest.raises(UserError, match="no image folder .*JPEGImages"):
        DetectionData(root)


def test_files_are_found_however_their_names_are_written(root, caplog):
    wanted = table(root).boxes.tolist()
    nfc, nfd = (unicodedata.normalize(form, "train_\u00e4") for form in ("NFC", "NFD"))
    (root / "JPEGImages/train_0.png").rename(root / f"JPEGImages/{nfd}.PNG")
    xml(root).rename(root / "Annotations" / f"{nfc.upper()}.xml")
    names = (root / "ImageSets/Main/train.txt").read_text().replace("train_0", nfc)
    (root / "ImageSets/Main/train.txt").write_text(names, encoding="utf-8")
    found = table(root)
    assert sorted(found.boxes.tolist()) == sorted(wanted) and f"{nfd}.PNG" in list(found.file_names)
    assert not caplog.records


def test_names_may_hold_spaces(root):
    for old, new in (("train_0", "photo 1"), ("train_1", "photo (2)")):
        (root / f"JPEGImages/{old}.png").rename(root / f"JPEGImages/{new}.png")
        (root / f"Annotations/{old}.xml").rename(root / f"Annotations/{new}.xml")
    (root / "ImageSets/Main/train.txt").write_text("photo 1\nphoto (2) 1\ntrain_3 -1\n")
    assert list(table(root).file_names) == ["photo (2).png", "photo 1.png", "train_3.png"]


def test_lists_of_other_names_only_are_no_split(root):
    for split in COUNTS:
        (root / f"ImageSets/Main/{split}.txt").rename(root / f"ImageSets/Main/ant_{split}.txt")
    with pytest.raises(UserError, match="Main has ant_train.txt, ant_val.txt, but none of train.txt, .*write train"):
        DetectionData(root)
    (root / "ImageSets/Main/ant_train.txt").rename(root / "ImageSets/Main/default.txt")  # as CVAT writes it
    assert len(table(root)) == COUNTS["train"]


def test_hidden_files_and_pipes(root):
    for split in COUNTS:
        (root / f"ImageSets/Main/{split}.txt").unlink()
    (root / "Annotations/._train_0.xml").write_bytes(b"\0\5\x16\7")  # macOS
    (root / "JPEGImages/._train_0.png").write_bytes(b"\0\5\x16\7")
    assert len(table(root)) == sum(COUNTS.values())
    xml(root).unlink()
    os.mkfifo(xml(root))
    with pytest.raises(UserError, match="train_0.xml: not a file"):
        table(root)
