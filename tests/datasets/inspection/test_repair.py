"""The corrected copy has none of the problems that can be fixed."""
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.coco import CocoDetection, read_annotations
from datasets.inspection.repair import repair
from datasets.inspection.split import KINDS, inspect_split
from tests.datasets.inspection.damages import DAMAGES, SIZE, box, file_of, image, picture, turned
from util.errors import UserError


@pytest.mark.parametrize("name", DAMAGES)
def test_the_corrected_copy_has_no_problem_that_can_be_fixed(root, name, tmp_path):
    DAMAGES[name][0](root)
    repair([inspect_split(root, split) for split in ("train", "val")], tmp_path / "new")
    for split in ("train", "val"):
        inspection = inspect_split(tmp_path / "new", split)
        assert not [p for p in inspection.problems if KINDS[p.kind].remedy] and not inspection.stops()
        read_annotations(tmp_path / "new", split)
    dataset = CocoDetection(tmp_path / "new", "train", lambda image, target: (image, target), strict=True)
    assert not any(dataset[i][1]["skipped"] for i in range(len(dataset)))
    gone = DAMAGES[name][1] in ("missing", "unreadable") or name in ("no file name", "image id, other file")
    assert len(dataset) == (3 if gone else 4)


def test_boxes_that_are_equal_once_cut_are_one(root, tmp_path):
    for width in (20, 30):
        box(90, 5, width, 10, id=width)(root)
    repair([inspect_split(root, split) for split in ("train", "val")], tmp_path / "new")
    content = json.loads(file_of(tmp_path / "new", "train").read_text())
    assert [a["bbox"] for a in content["annotations"]].count([90, 5, 10, 10]) == 1


def test_a_turned_image_is_turned_in_the_copy_and_others_are_linked(root, tmp_path):
    turned(SIZE[::-1])(root)
    with Image.open(picture(root, "train", 3)) as old:
        wanted = np.asarray(old.transpose(Image.Transpose.ROTATE_270))
    repair([inspect_split(root, split) for split in ("train", "val")], tmp_path / "new")
    with Image.open(picture(tmp_path / "new", "train", 3)) as new:
        assert np.array_equal(np.asarray(new), wanted) and new.getexif().get(0x0112, 1) == 1
    assert picture(tmp_path / "new", "train", 1).samefile(picture(root, "train", 1))
    with Image.open(picture(root, "train", 3)) as old:
        assert old.size == SIZE  # the original is as it was


def test_what_the_copy_refuses(root, tmp_path):
    splits = [inspect_split(root, split) for split in ("train", "val")]
    with pytest.raises(UserError, match="not an empty folder"):
        repair(splits, root)
    shutil.copy(picture(root, "train", 3), root / "outside.png")
    image(file_name="../outside.png")(root)
    with pytest.raises(UserError, match="leads outside"):
        repair([inspect_split(root, "train"), splits[1]], tmp_path / "new")
    assert not (tmp_path / "new/outside.png").exists()
    for number in range(1, 5):
        picture(root, "val", number).unlink()
    with pytest.raises(UserError, match="no image of .*val2017 would be left"):
        repair([splits[0], inspect_split(root, "val")], tmp_path / "other")


def test_the_rounding_of_clipping_is_not_reported(root, tmp_path):
    generator = torch.Generator().manual_seed(0)
    for number, values in enumerate((torch.rand(50, 4, generator=generator) * 100).tolist()):
        box(*values, id=1000 + number)(root)
    repair([inspect_split(root, split) for split in ("train", "val")], tmp_path / "new")
    assert not inspect_split(tmp_path / "new", "train").by_kind().keys() - {"tiny"}


def test_all_problems_at_once(root, tmp_path):
    names = [name for name in DAMAGES if DAMAGES[name][1] in ("not_finite", "empty", "outside", "clipped", "tiny",
                                                              "unknown_image", "unknown_category", "not_a_box")]
    for name in names:
        DAMAGES[name][0](root)
    picture(root, "train", 4).unlink()
    inspection = inspect_split(root, "train")
    kinds = {kind: len(problems) for kind, problems in inspection.by_kind().items()}
    assert kinds == {"unknown_category": 1, "unknown_image": 2, "not_a_box": 2, "repeated_annotation_id": 7,
                     "missing": 1, "not_finite": 2, "empty": 2, "outside": 1, "clipped": 2, "tiny": 1}
    numbers = repair([inspection, inspect_split(root, "val")], tmp_path / "new")
    assert numbers["train"] == {"images": (4, 3), "annotations": (5 + len(names), 4 + 3)}
    content = json.loads(file_of(tmp_path / "new", "train").read_text())
    assert [a["id"] for a in content["annotations"]] == list(range(1, 8))
    assert [90, 5, 10, 10] in [a["bbox"] for a in content["annotations"]]
    assert content["licenses"] == []
