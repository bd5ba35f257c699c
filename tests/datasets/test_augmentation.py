"""What a training sees with all augmentations at work, as the whole: the same in every process, whole trainings."""
import dataclasses
import json
import shutil
import textwrap

import numpy as np
import pytest
import torch

from datasets.augmentation import Augmentation
from datasets.coco import CocoDetection
from datasets.loaders import train_loader
from datasets.phases import Sample
from datasets.transforms import train_transforms
from tests.datasets import painted
from tests.datasets.coco_sets import SMALL, assert_same, picture
from tests.datasets.test_mixing import FOUR, near

KEYS = ("mosaic", "mixup", "copy_paste", "scale_jitter")
EXTRA = """
    from torchvision.transforms import v2

    def jitter():
        return v2.Compose([v2.RandomPhotometricDistort(), v2.RandomIoUCrop(), v2.SanitizeBoundingBoxes()])
"""


def with_all(part=0.5, **changes):
    shares = {f"data_aug_{name}": part for name in KEYS}
    return dataclasses.replace(SMALL, **shares | {"data_aug_color": 0.2} | changes)


@pytest.fixture
def hook(tmp_path):
    path = tmp_path / "hook.py"
    path.write_text(textwrap.dedent(EXTRA), encoding="utf-8")
    return f"{path}:jitter"


def opened(root, options=SMALL, **kwargs):
    return CocoDetection(root, "train", Augmentation(options), **kwargs)


def test_with_everything_off_samples_are_those_of_the_plain_transforms(coco_root):
    plain = CocoDetection(coco_root, "train", train_transforms(SMALL), seed=4)
    for progress in (0.0, 0.3):
        one = opened(coco_root, dataclasses.replace(SMALL, aug_phases={"mosaic": (0, 1)}), seed=4)
        for i in range(16):
            assert_same(one[Sample(i % 8, i // 8, progress)], plain[i])


def test_outside_their_phases_samples_are_those_of_the_plain_transforms(coco_root):
    plain, one = CocoDetection(coco_root, "train", train_transforms(SMALL)), opened(coco_root, with_all(
        1.0, data_aug_color=0.0, data_aug_scale_jitter=0.0))
    for progress, same in ((0.0, True), (0.039, True), (0.04, False), (0.499, False), (0.5, True), (0.999, True)):
        images = [(one[Sample(i, 0, progress)][0], plain[i][0]) for i in range(8)]
        assert all(a.shape == b.shape and torch.equal(a, b) for a, b in images) == same


def test_a_sample_follows_from_seed_image_repetition_and_progress(coco_root, hook):
    options = with_all(data_aug_extra=hook)
    samples = [Sample(i, repetition, progress) for repetition in (0, 2) for i in range(8) for progress in (0.1, 0.7)]
    one, other = opened(coco_root, options, seed=5), opened(coco_root, options, seed=5)
    first = [one[sample] for sample in samples]
    torch.manual_seed(9)
    for sample, item in zip(reversed(samples), reversed(first)):
        assert_same(other[sample], item)
    changed = [one[sample] for sample in samples]
    assert all(torch.equal(a[0], b[0]) for a, b in zip(changed, first))
    differ = [opened(coco_root, options, seed=6)[sample] for sample in samples]
    assert sum(a[0].shape != b[0].shape or not torch.equal(a[0], b[0]) for a, b in zip(differ, first)) > 20


@pytest.mark.parametrize("workers", [0, 3])
def test_workers_and_a_start_in_mid_epoch_change_nothing(coco_root, hook, workers):
    """8 images, 4 batches in a pass; 3 epochs of 6 batches."""
    def loader(workers):
        return train_loader(opened(coco_root, with_all(data_aug_extra=hook), seed=3), 2, workers, seed=3,
                            epoch_batches=6, epochs=3)

    def batches(loader, epoch, start=0):
        loader.batch_sampler.set_epoch(epoch, start)
        return [pair for samples, targets in loader for pair in zip(samples.tensors, targets, strict=True)]

    whole = [batches(loader(0), epoch) for epoch in range(2)]
    again, resumed = loader(workers), batches(loader(workers), 1, start=2)
    for epoch in range(2):
        for one, other in zip(batches(again, epoch), whole[epoch], strict=True):
            assert_same(one, other)
    for one, other in zip(resumed, whole[1][4:], strict=True):
        assert_same(one, other)


def test_items_hold_what_those_of_one_image_hold(coco_root, hook):
    plain, dataset = opened(coco_root), opened(coco_root, with_all(1.0, data_aug_extra=hook))
    for index in range(8):
        image, target = dataset[Sample(index, progress=0.2)]
        wanted = plain[index][1]
        assert target.keys() == wanted.keys() and target["image_id"] == wanted["image_id"]
        assert torch.equal(target["orig_size"], wanted["orig_size"]) and target["skipped"] == 0
        count = len(target["labels"])
        assert target["boxes"].shape == (count, 4) and target["area"].shape == target["iscrowd"].shape == (count,)
        assert all(target[name].dtype == wanted[name].dtype for name in ("boxes", "labels", "area", "iscrowd"))
        assert type(target["boxes"]) is torch.Tensor and image.dtype == torch.uint8
        corners = torch.cat([target["boxes"][:, :2] - target["boxes"][:, 2:] / 2,
                             target["boxes"][:, :2] + target["boxes"][:, 2:] / 2], 1)
        assert ((corners > -1e-5) & (corners < 1 + 1e-5)).all() and (target["boxes"][:, 2:] > 0).all()
        assert (target["area"] > 0).all() and not target["iscrowd"].any()
        assert image.shape[1:] == tuple(target["size"].tolist())


def test_boxes_of_finished_mosaics_are_where_the_pixels_are(tmp_path):
    painted.write(tmp_path, FOUR)
    dataset = opened(tmp_path, dataclasses.replace(SMALL, data_aug_mosaic=1.0, data_aug_scale_jitter=0.5,
                                                   aug_phases={"mosaic": (0, 1), "crop": (0.5, 1)}))
    checked = 0
    for i in range(60):
        image, target = dataset[Sample(i % 4, i // 4)]
        if len(set(target["labels"].tolist())) < len(target["labels"]):
            continue  # a partner that is drawn twice
        boxes, found = painted.boxes_of(image, target), painted.extents(image)
        clear = [label for label, box in boxes.items() if min(box[2] - box[0], box[3] - box[1]) > 6]
        near({label: found[label] for label in clear}, {label: boxes[label] for label in clear}, slack=2)
        checked += len(clear)
    assert checked > 20


def test_a_partner_that_cannot_be_read_gives_way_to_the_next(coco_root, tmp_path):
    root = shutil.copytree(coco_root, tmp_path / "set")
    picture(root, 5).write_bytes(b"")
    dataset = opened(root, with_all(1.0))
    items = [dataset[Sample(i % 8, i // 8, 0.1)][1] for i in range(40)]
    assert {item["image_id"] for item in items} == {1, 2, 3, 4, 5, 7, 8}
    skipped = [item["skipped"] for item in items]
    assert max(skipped) > 1 and 0.3 < np.mean(skipped) < 1.2  # an eighth of six images


# trainings

def options(hook, **more):
    keys = {f"data_aug_{name}": 0.5 for name in KEYS} | {"data_aug_color": 0.2, "data_aug_extra": hook} | more
    return [f"{name}={value}" for name, value in keys.items()]


def test_a_training_with_all_of_them(call, hook, tmp_path):
    folder = tmp_path / "run"
    phases = "{'mosaic': (0, 1), 'mixup': (0, 0.5), 'extra': (0.5, 1)}"
    assert call("--output_dir", folder, options=options(hook, aug_phases=phases)) == 0
    records = [json.loads(line) for line in (folder / "log.txt").read_text(encoding="utf-8").splitlines()]
    assert len(records) == 2 and all(np.isfinite(record["train_loss"]) for record in records)


def test_a_bad_hook_ends_a_training_in_a_user_error(call, tmp_path):
    assert_fails = pytest.raises(Exception, match="there is no file")
    with assert_fails:
        call("--output_dir", tmp_path / "run", options=["data_aug_extra=not_there.py:name"])


def test_crowded_mosaics_have_more_targets_than_there_are_queries(call, tmp_path):
    """36 objects in an image, 20 queries; more denoising queries than dn_number."""
    grid = [(x, y, 9, 9) for x in range(0, 60, 10) for y in range(0, 60, 10)]
    painted.write(tmp_path / "set", [((64, 64), {})] * 4)
    for split in ("train", "val"):
        path = tmp_path / f"set/annotations/instances_{split}2017.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        content["annotations"] = [
            {"id": i + 1, "image_id": i % 4 + 1, "category_id": 1 + i % 6, "iscrowd": 0, "bbox": grid[i // 4],
             "area": 81} for i in range(4 * len(grid))]
        content["categories"].pop()
        path.write_text(json.dumps(content), encoding="utf-8")
    keys = ["data_aug_mosaic=1", "data_aug_mixup=1", "aug_phases={'mosaic': (0, 1), 'mixup': (0, 1)}", "epochs=1"]
    assert call("--output_dir", tmp_path / "run", options=keys, data=tmp_path / "set") == 0
    record = json.loads((tmp_path / "run/log.txt").read_text(encoding="utf-8"))
    assert np.isfinite(record["train_loss"])


def test_what_a_checkpoint_names_is_not_run(call, tmp_path):
    """A training runs the code of its own config. An evaluation with the config that its weights carry does not."""
    code = tmp_path / "hook.py"
    code.write_text("from torchvision.transforms import v2\n"
                    f"open({str(tmp_path / 'runs')!r}, 'a', encoding='utf-8').write('x')\n"
                    "def same():\n    return v2.Identity()\n", encoding="utf-8")
    folder = tmp_path / "run"
    assert call("--output_dir", folder, options=[f"data_aug_extra={code}:same", "epochs=1"]) == 0
    assert (tmp_path / "runs").read_text(encoding="utf-8") == "x"
    assert call("--eval", "--resume", folder / "checkpoint.pth", "--output_dir", tmp_path / "eval", config=None) == 0
    assert (tmp_path / "runs").read_text(encoding="utf-8") == "x"
