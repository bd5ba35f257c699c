"""The checksum of what is read."""
from datasets.data import DetectionData
from tests.datasets.formats.layouts import write_yolo
from util.options import DataOptions


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


def test_the_state_knows_files_that_are_not_there(tmp_path):
    root = write_yolo(tmp_path / "set", "train: train.txt\nnames: [ant, bee, cat]\n")

    def state(name):
        (root / "train.txt").write_text(f"images/train/train_0.png\nimages/train/{name}\n")
        return DetectionData(root).source("train").state()[0]

    assert state("none.png") != state("nobody.png")
