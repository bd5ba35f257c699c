"""data.yaml: what its entries mean, and what is refused."""
import logging
import os

import pytest

from datasets.data import DetectionData
from datasets.formats import find_layout
from tests.datasets.formats.layouts import COUNTS, stem, write_yolo
from util.errors import UserError

NAMES = "names: [ant, bee, cat]\n"


@pytest.fixture
def root(tmp_path):
    return write_yolo(tmp_path / "set")


def described(root, text):
    (root / "data.yaml").write_text(text)
    return root


def names(root, split="train"):
    return list(DetectionData(root).split(split).table.file_names)


TRAIN = [f"{stem('train', i)}.png" for i in range(COUNTS["train"])]


@pytest.mark.parametrize("entries", [
    "train: ./images/train", "train: ../train/images", "path: images\ntrain: train", "path: .\ntrain: images/train",
    "train: [images/train]", "train: /home/somebody/set/images/train", "train: 'C:\\data\\set\\images\\train'",
    "path: /home/somebody/set\ntrain: images/train", "path: ../datasets/set\ntrain: images/train"])
def test_an_entry_is_found_below_the_folder(root, entries):
    if "../train/images" in entries:  # as Roboflow exports it
        (root / "train").mkdir()
        (root / "images/train").rename(root / "train/images")
        (root / "labels/train").rename(root / "train/labels")
    assert names(described(root, f"{entries}\n{NAMES}")) == TRAIN


def test_a_path_of_another_machine_is_told(root, caplog):
    with caplog.at_level(logging.INFO):
        names(described(root, f"train: /home/somebody/set/images/train\n{NAMES}"))
    assert "'/home/somebody/set/images/train' is not there and means" in caplog.text


@pytest.mark.parametrize("lines", [
    "./images/train/{}\n", "images/train/{}\n\n", "/home/somebody/set/images/train/{}\n", "images\\train\\{}\n"])
def test_a_split_may_be_a_text_file(root, lines):
    (root / "train.txt").write_text("".join(lines.format(name) for name in reversed(TRAIN)))
    found = DetectionData(described(root, f"train: train.txt\n{NAMES}")).split("train").table
    assert list(found.file_names) == [f"images/train/{name}" for name in TRAIN] and len(found.boxes) > 5


def test_a_split_may_be_several_folders(root, caplog):
    assert names(described(root, f"train: [images/train, images/val]\n{NAMES}")) == [
        *(f"images/train/{name}" for name in TRAIN), *(f"images/val/{stem('val', i)}.png" for i in range(4))]
    assert len(names(described(root, f"train: [images/train, images/train]\n{NAMES}"))) == 6
    assert "lists 6 images more than once" in caplog.text


def test_the_yaml_file_may_have_any_name(root):
    (root / "data.yaml").rename(root / "animals.yml")
    assert names(root) == names(root / "animals.yml") == TRAIN
    (root / "other.yaml").write_text("a: 1\n")
    assert names(root / "animals.yml") == TRAIN
    for _ in range(2):  # two files, and one that describes no data
        with pytest.raises(UserError, match="known layout"):
            find_layout(root)
        (root / "animals.yml").unlink(missing_ok=True)


def test_names_may_be_numbered(root):
    assert DetectionData(described(root, "train: images/train\nnames: {1: bee, 0: ant, 2: cat}\nnc: 3\n")).split(
        "train").table.names == {1: "ant", 2: "bee", 3: "cat"}


@pytest.mark.parametrize("words, wanted", [
    ("[1, 2, 010]", ["1", "2", "010"]), ("[yes, no, on]", ["yes", "no", "on"]),
    ("[null, 12:30, 1e3]", ["null", "12:30", "1e3"]),
    ("{0: 2020-01-01, 1: 0x10, 2: ~}", ["2020-01-01", "0x10", "~"]),
    ("['a b', \"a\\tb\", a_b ]", ["a b", "a\tb", "a_b"])])
def test_names_are_what_is_written(root, words, wanted):
    """YAML reads the class no as False, and 010 as 8."""
    found = DetectionData(described(root, f"train: images/train\nnames: {words}\nnc: 3\n")).source("train").names()
    assert list(found.values()) == wanted


def test_names_that_hardly_differ_are_told(root, caplog):
    names(described(root, "train: images/train\nnames: [Ant, ant, cat]\n"))
    assert "the classes 'Ant' (id 1) and 'ant' (id 2) differ in case" in caplog.text


@pytest.mark.parametrize("line", ["test: ../test/images", "test: /elsewhere/test", "test: images/test"])
def test_a_val_or_test_set_that_is_not_there_is_left_out_and_told(root, line, caplog):
    assert set(DetectionData(described(root, f"train: images/train\n{line}\n{NAMES}")).sources) == {"train"}
    assert f"data.yaml: test: '{line[6:]}'" in caplog.text and "There is no test set then" in caplog.text
    with pytest.raises(UserError, match="no val set"):
        DetectionData(described(root, f"train: images/train\nval: {line[6:]}\n{NAMES}")).source("val")
    assert "There is no val set then" in caplog.text


@pytest.mark.parametrize("empty", ["", " ~", " null", " # none"])
def test_a_split_may_be_empty(root, empty):
    assert set(DetectionData(described(root, f"train: images/train\ntest:{empty}\n{NAMES}")).sources) == {"train"}


@pytest.mark.parametrize("name", ["data.yaml", "train.txt"])
def test_pipes_and_folders_are_not_read(root, name):
    described(root, f"train: train.txt\n{NAMES}")
    (root / name).unlink(missing_ok=True)
    os.mkfifo(root / name)
    with pytest.raises(UserError, match="known layout" if name == "data.yaml" else "train.txt: not a file"):
        DetectionData(root)
    (root / name).unlink()
    if name == "data.yaml":
        (root / name).mkdir()
        with pytest.raises(UserError, match="known layout"):
            DetectionData(root)


@pytest.mark.parametrize("text, words", [
    ("names: [a, b]\nnames: [b, a]\n", "no valid YAML: a key is there twice.*line 1"),
    ("names: {0: a, 1: b, 1: c}\n", "a key is there twice"),
    ("kpt_shape: 3\nnames: [a]\n", "kpt_shape must be two numbers"),
    (f"train: {'a' * 300}\n{NAMES}", "is not there"), ("names: [[a], b]\n", "must be a text"),
    ("names: {a: b}\nnc: 1\n", "must be 0, 1, .. 0, got a$"),
    ("names: [a]\ntrain: [", "no valid YAML: .*line 2"), ("- a\n", "it holds a list"), ("", "it holds a NoneType"),
    ("!!python/object/apply:os.system [ls]", "no valid YAML"),
    ("train: images/train\n", "'names' must list the classes"), ("names: []\n", "'names' must list"),
    ("names: [a, a]\n", "that no other has"), ("names: ['']\n", "must be a text"),
    ("names: {1: a, 2: b}\n", "must be 0, 1, .. 1, got 1, 2$"), ("names: [a]\nnc: 2\n", "nc is 2, but there are 1"),
    (f"train: {{a: b}}\n{NAMES}", "'train' must be a path or a list of paths"),
    (f"train: nowhere\n{NAMES}", "data.yaml: train: 'nowhere' is not there: there is no .*set/nowhere"),
    (f"train: ../outside\n{NAMES}", "'../outside' lies outside .*set.*train_images"),
    (f"train: /etc\n{NAMES}", "'/etc' lies outside"), (f"train: images/../..\n{NAMES}", "lies outside"),
    (f"train: data.yaml\n{NAMES}", "data.yaml, line 1: 'train: data.yaml' is no image"),
    (f"train: labels/train\n{NAMES}", "no images in .*labels/train")])
def test_what_is_refused(root, text, words):
    (root.parent / "outside").mkdir()
    with pytest.raises(UserError, match=words):
        DetectionData(described(root, text)).split("train")


@pytest.mark.parametrize("line", ["../outside.png", "/etc/hostname.png", "images/../../outside.png"])
def test_a_list_leads_to_no_other_folder(root, line):
    (root.parent / "outside.png").write_bytes(b"")
    (root / "train.txt").write_text(f"images/train/{TRAIN[0]}\n{line}\n")
    with pytest.raises(UserError, match="train.txt, line 2: .* lies outside"):
        DetectionData(described(root, f"train: train.txt\n{NAMES}"))


def test_an_image_that_a_list_names_and_nobody_has_is_missing(root, caplog):
    from datasets.coco import CocoDetection

    (root / "train.txt").write_text(f"images/train/{TRAIN[0]}\nimages/train/none.png\n")
    described(root, f"train: train.txt\n{NAMES}")
    assert len(CocoDetection(root, "train", None)) == 1 and "names 1 images that" in caplog.text
