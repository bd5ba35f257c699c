"""Several sets as one, parts of a set, and the checksum of what is read."""
import pytest

from datasets.coco import CocoDetection
from datasets.data import DetectionData
from datasets.formats.source import merged_names, share
from tests.datasets.formats.layouts import opened, write_coco, write_yolo
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


def test_the_state_changes_with_what_is_read(tmp_path):
    root = write_yolo(tmp_path / "set")
    first = root / "labels/train/train_0.txt"

    def state(**options):
        return DetectionData(root, DataOptions(**options)).source("train").state()

    before = state()
    assert before == state() and before[2] == 13 and before[1] > 1000
    first.write_text(first.read_text() + " ")
    assert state()[0] != before[0] and state()[1] == before[1] + 1
    (root / "data.yaml").write_text("train: images/train\nnames: [ant, bee, cat]\n")
    assert len({state(val_fraction=fraction, val_seed=seed)[0] for fraction in (0.2, 0.5) for seed in (0, 1)}) == 4
    parts = DetectionData(root, DataOptions(val_fraction=0.2))
    assert parts.source("train").state()[0] != parts.source("val").state()[0]
