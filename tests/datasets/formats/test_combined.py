"""Several sets as one, and parts of a set."""
import shutil
from collections import Counter

import pytest
from PIL import Image

from datasets.coco import CocoDetection, read_annotations
from datasets.data import DetectionData
from datasets.formats.combined import merged_names, share
from datasets.inspection.split import inspect_split
from tests.datasets.formats.layouts import opened, write_coco, write_places, write_voc, write_yolo
from util.errors import UserError
from util.options import DataOptions


@pytest.fixture
def two_sets(tmp_path):
    """Options: the same train images as a COCO set and as a YOLO set whose classes have another order, and a val set
    with other classes."""
    write_coco(tmp_path / "a")
    yolo = write_yolo(tmp_path / "b")
    (yolo / "labels/train/classes.txt").write_text("Cat\ndog\nANT\n")
    (yolo / "labels/val/classes.txt").write_text("dog\nant\nhen\n\n")
    return DataOptions(
        train_images=[str(tmp_path / "a/train2017"), str(yolo / "images/train")],
        train_annotations=[str(tmp_path / "a/annotations/instances_train2017.json"), str(yolo / "labels/train")],
        val_images=[str(yolo / "images/val")], val_annotations=[str(yolo / "labels/val")])


def untouched(data, split):
    return CocoDetection(data, split, lambda image, target: (image, target))


def test_several_sets_become_one_and_classes_meet_by_name(tmp_path, two_sets):
    data = DetectionData(None, two_sets)
    names = {1: "ant", 2: "bee", 3: "cat", 4: "dog", 5: "hen"}
    assert data.split("train").table.names == data.split("val").table.names == names
    train = untouched(data, "train")
    assert len(train) == 12 and train.ids == list(range(1, 13))
    for index in range(6):
        (image, target), (other, its) = train[index], train[index + 6]
        assert image.tobytes() == other.tobytes() and target["boxes"].tolist() == its["boxes"].tolist()
        assert its["labels"].tolist() == [{1: 3, 2: 4, 3: 1}[label] for label in target["labels"].tolist()]
    assert train.folder == tmp_path and train.coco.imgs[1]["file_name"] == "a/train2017/train_0.png"
    assert train.coco.imgs[7]["file_name"] == "b/images/train/train_0.png"
    val, same = untouched(data, "val"), untouched(opened("coco", tmp_path / "c"), "val")
    assert [{4: 1, 1: 2, 5: 3}[label] for label in val[0][1]["labels"].tolist()] == same[0][1]["labels"].tolist()


def test_each_class_has_the_id_of_the_first_that_has_it():
    class Named:
        def __init__(self, **names):
            self.names = lambda: {int(i[1:]): name for i, name in names.items()}

    assert merged_names([Named(_1="cat", _7="dog"), Named(_1="Dog", _2="bee", _7="hen")]) == {
        1: "cat", 7: "dog", 2: "bee", 8: "hen"}


def test_a_share_depends_on_seed_and_names(tmp_path):
    names = [f"{i}.png" for i in range(6)]
    assert share(names, 0.5, 1).tolist() == share(names, 0.5, 1).tolist() == sorted(share(names, 0.5, 1).tolist())
    assert len({tuple(share(names, 0.5, seed)) for seed in range(9)}) > 3
    assert len(share(names, 0.001, 0)) == 1 and len(share(names, 0.9, 0)) == 5
    many = [f"{i}.png" for i in range(1000)]
    chosen = {many[i] for i in share(many, 0.1, 0)}
    backwards = [f"a\\\\b/{name}" for name in reversed(many)]  # another layout: other folders, another order
    assert {backwards[i].rpartition("/")[2] for i in share(backwards, 0.1, 0)} == chosen and len(chosen) == 100


def test_an_image_that_is_added_hardly_moves_others(tmp_path):
    names = [f"{i}.png" for i in range(1000)]
    before = {names[i] for i in share(names, 0.1, 0)}
    more = ["added.png", *names]
    assert len({more[i] for i in share(more, 0.1, 0)} - {"added.png"} - before) <= 1


def test_one_image_cannot_be_split(tmp_path):
    one = write_yolo(tmp_path / "one", "train: images/train\nnames: [ant, bee, cat]\n")
    for path in sorted((one / "images/train").iterdir())[1:]:
        path.unlink()
    with pytest.raises(UserError, match="one image cannot be split"):
        DetectionData(one, DataOptions(val_fraction=0.5)).split("train")


def test_the_val_set_is_the_same_in_every_layout(tmp_path):
    def split_off(path, **options):
        data = DetectionData(path, DataOptions(val_fraction=0.5, **options))
        return [sorted(name.rpartition("/")[2] for name in data.split(split).table.file_names)
                for split in ("train", "val")]

    places = write_places(tmp_path / "places")
    def backwards(content):
        for image in content["images"]:
            image["id"] *= -1
        for annotation in content["annotations"]:
            annotation["image_id"] *= -1

    coco = write_coco(tmp_path / "coco", change=backwards)
    shutil.rmtree(coco / "val2017"), (coco / "annotations/instances_val2017.json").unlink()
    yolo = write_yolo(tmp_path / "yolo", "train: images/train\nnames: [ant, bee, cat]\n")
    (voc := write_voc(tmp_path / "voc")).joinpath("ImageSets/Main/val.txt").unlink()
    wanted = split_off(None, **{name: places[name] for name in ("train_images", "train_annotations")})
    assert split_off(coco) == split_off(yolo) == split_off(voc) == wanted and [len(part) for part in wanted] == [3, 3]


def damaged(content):
    content["annotations"][0]["bbox"] = [1, 2, 3]
    content["annotations"][1]["image_id"] = 77
    content["annotations"][2]["category_id"] = 77


def test_a_damaged_set_is_inspected_in_parts_and_joined(tmp_path):
    """Reading it says that the inspection lists what is wrong."""
    root = write_coco(tmp_path / "set", change=damaged)
    shutil.rmtree(root / "val2017"), (root / "annotations/instances_val2017.json").unlink()
    data = DetectionData(root, DataOptions(val_fraction=0.5))
    with pytest.raises(UserError, match="bbox must be four numbers"):
        data.split("train")
    parts = [inspect_split(data, split) for split in ("train", "val")]
    kinds = Counter(problem.kind for part in parts for problem in part.problems if problem.kind != "area")
    assert kinds == {"not_a_box": 1, "unknown_image": 2, "unknown_category": 1}  # unknown: in both parts
    assert sorted(len(part.images) for part in parts) == [3, 3]
    other = shutil.copytree(root, tmp_path / "other")
    data = DetectionData(None, DataOptions(
        train_images=[str(folder / "train2017") for folder in (root, other)],
        train_annotations=[str(folder / "annotations/instances_train2017.json") for folder in (root, other)]))
    whole = inspect_split(data, "train")
    assert Counter(problem.kind for problem in whole.problems if problem.kind not in ("area", "repeated_file")) == {
        "not_a_box": 2, "unknown_image": 2, "unknown_category": 2}
    assert f"annotation '1 of {other}/annotations/instances_train2017.json': bbox" in "".join(
        problem.text for problem in whole.problems)
    sound = inspect_split(opened("coco", tmp_path / "sound"), "train")
    assert len(whole.images) == 12 and len(whole.box_label) == 2 * (len(sound.box_label) - 3)
    assert whole.box_sides[:5].tolist() == sound.box_sides[3:8].tolist()


def test_a_joined_set_leads_no_further_than_each_of_its_folders(tmp_path):
    Image.new("RGB", (64, 128)).save(tmp_path / "secret.png")
    write_coco(tmp_path / "a", change=lambda content: content["images"][0].update(file_name="../../secret.png"))
    write_coco(tmp_path / "b")
    places = {"train_images": [f"{tmp_path}/{name}/train2017" for name in "ab"],
              "train_annotations": [f"{tmp_path}/{name}/annotations/instances_train2017.json" for name in "ab"]}
    for read in (lambda data: inspect_split(data, "train"), lambda data: read_annotations(data, "train"),
                 lambda data: CocoDetection(data, "train", None)):
        with pytest.raises(UserError, match="'../../secret.png' leads outside .*a/train2017"):
            read(DetectionData(None, DataOptions(**places)))


def test_classes_of_one_set_that_become_one_are_told(tmp_path, two_sets, caplog):
    (tmp_path / "b/labels/train/classes.txt").write_text("Cat\ncat\nANT\n")
    names = DetectionData(None, two_sets).split("train").table.names
    assert names == {1: "ant", 2: "bee", 3: "cat", 4: "dog", 5: "hen"}
    assert "the classes 'Cat' (id 1) and 'cat' (id 2) differ in case" in caplog.text and "taken for one" in caplog.text
