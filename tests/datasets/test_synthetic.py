"""The synthetic set: valid COCO files, exact boxes, the same set for the same seed, and nothing half-written."""

import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from datasets import synthetic
from datasets.synthetic import CLASSES, generate

SIZE = 96
PINNED = [  # category id, left, top, width, height of the first objects for seed 0
    (5, 28, 7, 16, 17),
    (4, 37, 4, 44, 52),
    (5, 1, 18, 12, 11),
    (3, 52, 13, 27, 22),
    (3, 41, 65, 17, 16),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic") / "set"
    generate(folder, train=40, val=8, seed=0, size=SIZE)
    return folder


@pytest.fixture(scope="module")
def coco(root):
    return COCO(root / "annotations" / "instances_train2017.json")


def annotations(root, split="train2017"):
    return json.loads((root / "annotations" / f"instances_{split}.json").read_text())


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_is_a_complete_coco_set(root):
    for split, count in (("train2017", 40), ("val2017", 8)):
        coco = COCO(root / "annotations" / f"instances_{split}.json")
        assert {"info", "licenses", "images", "annotations", "categories"} <= coco.dataset.keys()
        assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == list(CLASSES)
        assert min(coco.getCatIds()) == 1
        assert len(coco.anns) == len(coco.dataset["annotations"])  # no id twice
        assert sorted(p.name for p in (root / split).iterdir()) == sorted(i["file_name"] for i in coco.imgs.values())
        assert len(coco.imgs) == count
        for image in coco.imgs.values():
            with Image.open(root / split / image["file_name"]) as picture:
                assert (picture.format, picture.mode) == ("JPEG", "RGB")
                assert picture.size == (image["width"], image["height"])
                assert SIZE * 3 // 4 <= min(picture.size) <= max(picture.size) <= SIZE


def test_boxes_are_exactly_tight_and_in_range(coco):
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation)  # raises unless the mask has the size of its picture
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        left, top, width, height = annotation["bbox"]
        assert (left, left + width) == (columns[0], columns[-1] + 1)
        assert (top, top + height) == (rows[0], rows[-1] + 1)
        assert annotation["area"] == mask.sum()
        assert 8 <= min(width, height) <= max(width, height) <= SIZE * 5 // 8


def test_masks_hold_visible_pixels_only(coco):
    for image in coco.imgs:
        masks = [coco.annToMask(a) for a in coco.imgToAnns[image]]
        assert not masks or np.max(np.sum(masks, axis=0)) == 1


def test_boxes_overlap_moderately(coco):
    for image in coco.imgs:
        corners = [(x, y, x + w, y + h) for x, y, w, h in (a["bbox"] for a in coco.imgToAnns[image])]
        for k, (l1, t1, r1, b1) in enumerate(corners):
            for l2, t2, r2, b2 in corners[:k]:
                shared = max(0, min(r1, r2) - max(l1, l2)) * max(0, min(b1, b2) - max(t1, t2))
                union = (r1 - l1) * (b1 - t1) + (r2 - l2) * (b2 - t2) - shared
                assert shared <= 0.35 * union  # 0.3 when placed; later objects may still trim a box


def test_objects_stand_out_where_the_annotations_say(root, coco):
    contrasts = []
    for annotation in (a for a in coco.anns.values() if not a["iscrowd"]):
        picture = np.asarray(Image.open(root / "train2017" / coco.imgs[annotation["image_id"]]["file_name"]), float)
        mask = coco.annToMask(annotation).astype(bool)
        x, y, w, h = (int(v) for v in annotation["bbox"])
        around = np.zeros_like(mask)
        around[max(y - 2, 0) : y + h + 2, max(x - 2, 0) : x + w + 2] = True
        contrasts.append(np.abs(picture[mask].mean(0) - picture[around & ~mask].mean(0)).sum())
    assert np.quantile(contrasts, 0.05) > 60


def test_shapes_are_those_of_their_class(tmp_path):
    generate(tmp_path / "set", train=60, val=0, size=160)
    fills = {name: [] for name in CLASSES}
    for a in annotations(tmp_path / "set")["annotations"]:
        if not a["iscrowd"] and min(a["bbox"][2:]) >= 24:
            fills[CLASSES[a["category_id"] - 1]].append(a["area"] / (a["bbox"][2] * a["bbox"][3]))
    assert np.median(fills["disc"]) == pytest.approx(np.pi / 4, abs=0.02)
    assert np.median(fills["ring"]) == pytest.approx(np.pi / 4 * (1 - 0.55**2), abs=0.03)
    assert np.median(fills["triangle"]) == pytest.approx(0.48, abs=0.04)
    assert np.median(fills["star"]) < np.median(fills["cross"]) < np.median(fills["square"])


@pytest.mark.parametrize("split, share", [("train2017", 2), ("val2017", 1)])
def test_has_empty_pictures_and_crowds(root, split, share):
    coco = COCO(root / "annotations" / f"instances_{split}.json")
    objects = Counter(a["image_id"] for a in coco.anns.values() if not a["iscrowd"])
    crowds = [a for a in coco.anns.values() if a["iscrowd"]]
    assert sum(not coco.imgToAnns[image] for image in coco.imgs) == share
    assert len(crowds) == share
    assert all(isinstance(a["segmentation"]["counts"], list) for a in crowds)
    assert 1 <= min(objects.values()) <= max(objects.values()) <= 8


def test_same_seed_same_set(root, tmp_path):
    generate(tmp_path / "again", train=40, val=8, seed=0, size=SIZE)
    assert contents(tmp_path / "again") == contents(root)


def test_other_seed_other_set(root, tmp_path):
    generate(tmp_path / "other", train=8, val=8, seed=1, size=SIZE)
    ours, others = contents(root), contents(tmp_path / "other")
    assert not any(ours[path] == others[path] for path in others)


def test_splits_differ(root):
    train, val = annotations(root, "train2017"), annotations(root, "val2017")
    assert [a["bbox"] for a in train["annotations"][:5]] != [a["bbox"] for a in val["annotations"][:5]]


def test_first_pictures_are_the_same_on_every_machine(root):
    """Where this fails, sets that were made earlier differ from new ones: raise synthetic.FORMAT."""
    found = [(a["category_id"], *a["bbox"]) for a in annotations(root)["annotations"][:5]]
    assert found == PINNED


def test_second_call_rewrites_nothing(tmp_path):
    root = tmp_path / "set"
    generate(root, train=2, val=1, size=32)
    before = {path: path.stat().st_mtime_ns for path in [root, *root.rglob("*")]}
    generate(root, train=2, val=1, size=32)
    assert {path: path.stat().st_mtime_ns for path in [root, *root.rglob("*")]} == before


def test_fills_an_empty_folder_and_makes_parents(tmp_path):
    generate(tmp_path / "a" / "b", train=1, val=0, size=32)
    (tmp_path / "empty").mkdir()
    generate(tmp_path / "empty", train=1, val=0, size=32)
    assert contents(tmp_path / "empty") == contents(tmp_path / "a" / "b")


def test_interruption_leaves_nothing(tmp_path, monkeypatch):
    save, saved = Image.Image.save, []

    def interrupted_save(self, path, **options):
        if len(saved) == 3:
            raise KeyboardInterrupt
        save(self, path, **options)
        saved.append(path)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Image.Image, "save", interrupted_save)
        generate(tmp_path / "set", train=2, val=2, size=32)
    assert len(saved) == 3 and list(tmp_path.iterdir()) == []
    generate(tmp_path / "set", train=2, val=2, size=32)
    assert len(annotations(tmp_path / "set")["images"]) == 2


def test_refuses_a_foreign_folder(tmp_path):
    (tmp_path / "annotations").mkdir()
    for split in ("train2017", "val2017"):
        (tmp_path / "annotations" / f"instances_{split}.json").write_text('{"info": {"year": 2017}}')
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path.name} .*remove it"):
        generate(tmp_path, train=1, val=1, size=32)
    assert contents(tmp_path) == before


def test_refuses_a_file(tmp_path):
    (tmp_path / "set").write_text("mine")
    with pytest.raises(ValueError, match="set holds something other"):
        generate(tmp_path / "set", train=1, val=1, size=32)


@pytest.mark.parametrize("change", [{"train": 3}, {"val": 0}, {"seed": 1}, {"size": 33}])
def test_refuses_a_set_of_other_parameters(tmp_path, change):
    parameters = {"train": 2, "val": 1, "seed": 0, "size": 32}
    generate(tmp_path / "set", **parameters)
    with pytest.raises(ValueError, match="remove it, or name another folder"):
        generate(tmp_path / "set", **parameters | change)


@pytest.mark.parametrize("wrong", [{"train": -1}, {"val": -1}, {"seed": -1}, {"size": 31}])
def test_refuses_numbers_out_of_range(tmp_path, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        generate(tmp_path / "set", **wrong)
    assert not (tmp_path / "set").exists()


def test_command_line(tmp_path):
    command = [sys.executable, "-m", "datasets.synthetic", str(tmp_path / "set"), "--train", "2", "--val", "1"]
    refused = subprocess.run([*command, "--size", "8"], capture_output=True, text=True)
    assert refused.returncode == 2 and "size >= 32" in refused.stderr
    subprocess.run([*command, "--size", "32", "--seed", "5"], check=True, capture_output=True)
    expected = {"format": synthetic.FORMAT, "train": 2, "val": 1, "seed": 5, "size": 32}
    assert annotations(tmp_path / "set")["info"]["parameters"] == expected
