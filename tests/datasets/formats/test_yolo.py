"""YOLO's label files, and their usual damages."""
import logging
import os
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from datasets.coco import CocoDetection
from datasets.data import DetectionData
from datasets.formats.yolo import label_file
from datasets.inspection.repair import repair
from datasets.inspection.split import inspect_split
from tests.datasets.formats.layouts import COUNTS, NAMES, SIZE, boxes_of, save, stem, write_yolo
from util.errors import UserError


@pytest.fixture
def root(tmp_path):
    return write_yolo(tmp_path / "set")


def label(root, index=0, split="train"):
    return root / f"labels/{split}/{stem(split, index)}.txt"


def table(root, split="train"):
    return DetectionData(root).split(split).table


def boxes(root, index=0):
    found = table(root)
    return found.boxes[found.boxes_of(index)].tolist()


def copied(root, tmp_path):
    """The kinds of problems of the train set, and the table of its corrected copy."""
    splits = [inspect_split(root, split) for split in COUNTS]
    repair(splits, tmp_path / "new")
    return {kind: len(found) for kind, found in splits[0].by_kind().items()}, table(tmp_path / "new"), splits[0].stops()


@pytest.mark.parametrize("path, wanted", [
    ("a/images/train/x.jpg", "a/labels/train/x.txt"), ("images/a/images/x.y.png", "images/a/labels/x.y.txt"),
    ("a/b/x.jpg", "a/b/x.txt"), ("a/images.jpg", "a/images.txt"), ("images/images.jpg", "labels/images.txt")])
def test_the_label_file_of_an_image(path, wanted):
    assert label_file(Path(path)) == Path(wanted)


def test_label_files_may_lie_beside_their_images(root):
    for split in COUNTS:
        for path in (root / "labels" / split).iterdir():
            path.rename(root / "images" / split / path.name)
    (root / "images").rename(root / "pictures")
    (root / "data.yaml").write_text("train: pictures/train\nval: pictures/val\nnames: [ant, bee, cat]\n")
    assert boxes(root) == [[x, y, w, h] for _, x, y, w, h in boxes_of("train", 0)]


def test_corners_and_confidences_are_read_for_what_they_are(root, caplog):
    label(root).write_text("0 0.25 0.25 0.75 0.25 0.75 0.5 0.25 0.5\n1 0.5 0.5 0.25 0.25 0.875\n2.0 0 0 1 0 0.5 1\n")
    with caplog.at_level(logging.INFO):
        assert boxes(root) == [[16, 32, 32, 32], [24, 48, 16, 32], [0, 0, 64, 128]]
    assert "derived 2 lines with corners in place of a box" in caplog.text
    assert "1 lines with a number after the box" in caplog.text


def test_the_size_is_that_of_the_upright_picture(root):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = root / "images/train/train_0.png"
    Image.new("RGB", (128, 64)).save(path, exif=exif)
    assert table(root).size(0) == SIZE == CocoDetection(root, "train", lambda *sample: sample)[0][0].size


DAMAGES = {  # lines, what is said, which of the lines stay
    "too few": (["0 0.5 0.5 0.25"], "line 1: 3 numbers after the class, not 4", []),
    "no class": (["0.5 0.5 0.25 0.25"], "line 1: 3 numbers", []),
    "no pairs": (["0 0.5 0.5 0.25 0.25", "", "1 " + "0.5 " * 7], "line 3: 7 numbers after the class", [0]),
    "a word": (["0 0.5 0.5 0.25 x"], "line 1: could not convert string to float: 'x'", []),
    "an unknown class": (["3 0.5 0.5 0.25 0.25"], "line 1: the class 3, but .*data.yaml has 3, from 0", []),
    "a negative class": (["-1 0.5 0.5 0.25 0.25"], "line 1: the class -1", []),
    "a fraction of a class": (["0.5 0.5 0.5 0.25 0.25"], "line 1: the class 0.5", []),
    "pixels": (["0 0.5 0.5 0.25 0.25", "1 32 64 16 16"], r"line 2: \[32.0, 64.0, 16.0, 16.0\] are no parts", [0]),
    "not finite": (["0 nan 0.5 0.25 0.25"], "line 1: .* are no parts of the image", []),
    "infinite": (["0 0.5 0.5 inf 0.25"], "line 1: .* are no parts of the image", []),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damages_are_named_by_file_and_line_and_left_out_of_a_copy(root, tmp_path, name):
    lines, words, kept = DAMAGES[name]
    label(root).write_text("\n".join(lines))
    with pytest.raises(UserError, match=f"data.yaml: .*labels/train/train_0.txt, {words}"):
        table(root)
    kinds, copy, stops = copied(root, tmp_path)
    assert kinds == {"unknown_category" if "class" in name and name != "no class" else "bad_line": 1} and stops
    assert len(copy.boxes[copy.boxes_of(0)]) == len(kept) and len(copy) == COUNTS["train"]


def test_all_problems_are_counted(root):
    label(root).write_text("7 0.5 0.5 0.25 0.25\nx\n\n0 0.5")
    with pytest.raises(UserError, match=r"line 1: the class 7.*\(and 2 more\)"):
        table(root)


def test_per_cent_are_told_and_divided_in_a_copy(root, tmp_path):
    before = table(root).boxes
    for index in range(COUNTS["train"]):
        words = [line.split() for line in label(root, index).read_text().splitlines()]
        label(root, index).write_text("".join(
            " ".join([first, *(repr(100 * float(word)) for word in rest)]) + "\n" for first, *rest in words))
    with pytest.raises(UserError, match="train_0.txt, line 1: .* are per cent of the image"):
        table(root)
    kinds, copy, stops = copied(root, tmp_path)
    assert kinds == {"per_cent": 1} and stops and abs(copy.boxes - before).max() < 1e-9


def test_an_image_without_a_label_file_is_one_without_objects_and_told(root, tmp_path, caplog):
    label(root).unlink()
    assert not boxes(root) and len(table(root)) == COUNTS["train"]
    assert "1 images without an annotation file" in caplog.text and "images/train/train_0.png: no" in caplog.text
    kinds, copy, stops = copied(root, tmp_path)
    assert kinds == {"no_labels": 1} and not stops and len(copy) == COUNTS["train"]
    for index in range(1, COUNTS["train"]):
        label(root, index).unlink()
    with pytest.raises(UserError, match="none of the 6 images of .*train has a label file, such as .*train_0.txt"):
        table(root)


def test_images_of_one_name_are_named(root, tmp_path):
    save("train", 0, tmp_path)
    (tmp_path / "train_0.png").rename(root / "images/train/train_0.jpeg")
    with pytest.raises(UserError, match="train_0.jpeg and .*train_0.png are images of one name"):
        table(root)
    kinds, copy, stops = copied(root, tmp_path)
    assert kinds == {"repeated_name": 1} and stops and len(copy) == COUNTS["train"] - 1


def test_a_label_file_that_is_no_text_is_named(root):
    label(root).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="train_0.txt: cannot be read as text"):
        table(root)


def test_a_broken_image_stays_one_to_pass_over(root, tmp_path, caplog):
    (root / "images/train/train_0.png").write_bytes(b"")
    assert len(table(root)) == COUNTS["train"]
    target = CocoDetection(root, "train", lambda *sample: sample)[0][1]
    assert target["skipped"] == 1 and target["image_id"] == 2
    kinds, copy, stops = copied(root, tmp_path)
    assert kinds == {"unreadable": 1} and not stops and len(copy) == COUNTS["train"] - 1


def test_a_byte_order_mark_is_no_matter(root):
    label(root).write_bytes(b"\xef\xbb\xbf" + label(root).read_bytes())
    assert len(boxes(root)) == len(boxes_of("train", 0))
    assert table(root).names == dict(enumerate(NAMES, 1))


def test_label_files_are_found_however_their_names_are_written(root, caplog):
    wanted = boxes(root), boxes(root, 1)
    nfc, nfd = (unicodedata.normalize(form, "Fu\u00dfg\u00e4nger") for form in ("NFC", "NFD"))
    for index, image, text in ((0, f"{nfc}.png", f"{nfd}.txt"), (1, "IMG_1.PNG", "img_1.TXT")):
        (root / f"images/train/{stem('train', index)}.png").rename(root / "images/train" / image)
        label(root, index).rename(root / "labels/train" / text)
    found = table(root)
    of = {name: found.boxes[found.boxes_of(i)].tolist() for i, name in enumerate(found.file_names)}
    assert (of[f"{nfc}.png"], of["IMG_1.PNG"]) == wanted and not caplog.records
    before = DetectionData(root).source("train").state()
    (root / f"labels/train/{nfd}.txt").write_text("0 0.5 0.5 0.25 0.25\n")
    assert DetectionData(root).source("train").state() != before


def test_label_files_without_an_image_are_told_and_left_out(root, tmp_path, caplog):
    for name in ("none", "other", "classes"):
        (root / f"labels/train/{name}.txt").write_text("0 0.5 0.5 0.25 0.25\n")
    assert len(table(root)) == COUNTS["train"]
    assert "2 label files without an image, left out, such as" in caplog.text and "train/none.txt" in caplog.text
    kinds, copy, stops = copied(root, tmp_path)
    assert kinds == {"no_image": 2} and not stops and len(copy) == COUNTS["train"]


def test_label_files_of_images_that_another_list_has_are_not_told(root, caplog):
    (root / "train.txt").write_text("images/train/train_0.png\n")
    (root / "data.yaml").write_text("train: train.txt\nnames: [ant, bee, cat]\n")
    assert len(table(root)) == 1 and not caplog.records


def test_keypoints_are_not_taken_for_corners(root, caplog):
    label(root).write_text("0 0.5 0.5 0.25 0.25 0.1 0.1 0.9 0.9\n")
    (root / "data.yaml").write_text("train: images/train\nkpt_shape: [2, 2]\nnames: [ant, bee, cat]\n")
    with caplog.at_level(logging.INFO):
        assert boxes(root) == [[24, 48, 16, 32]]
    assert "derived 1 lines with keypoints after the box" in caplog.text


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_what_is_no_file_is_named_and_not_waited_for(root, kind):
    label(root).unlink()
    os.mkfifo(label(root)) if kind == "pipe" else label(root).mkdir()
    with pytest.raises(UserError, match="train_0.txt: not a file"):
        table(root)


def test_images_to_detect_in_need_no_labels(root):
    for path in (root / "labels/val").iterdir():
        path.unlink()
    (root / "data.yaml").write_text("train: images/train\ntest: images/val\nnames: [ant, bee, cat]\n")
    assert len(table(root, "test")) == COUNTS["val"] and not len(table(root, "test").boxes)
