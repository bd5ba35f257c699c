"""The largest images of a training: reached, and never passed."""
import dataclasses

import pytest
import torch

from datasets.augmentation import Augmentation
from datasets.coco import CocoDetection
from datasets.shapes import largest_train_shape, padding_for
from datasets.transforms import train_transforms
from tests.datasets import painted
from tests.datasets.coco_sets import SMALL
from tests.datasets.test_transforms import sample


def test_the_largest_shape_is_reached_and_never_passed():
    """By some thousand samples of a landscape and a portrait image."""
    transforms, sizes = train_transforms(SMALL), [(200, 90), (80, 120)]
    torch.manual_seed(0)
    seen_shapes = [transforms(*sample(*size))[0].shape[1:] for size in sizes for _ in range(300)]
    height, width = largest_train_shape(SMALL, sizes, batch_size=2)
    assert 0.95 * height <= max(h for h, _ in seen_shapes) <= height
    assert 0.95 * width <= max(w for _, w in seen_shapes) <= width
    largest = max(h * w for h, w in seen_shapes)
    height, width = largest_train_shape(SMALL, sizes, batch_size=1)
    assert 0.95 * height * width <= largest <= 1.02 * height * width
    assert largest_train_shape(SMALL, sizes, 2, fix_size=True) == (96, 128)
    padded = largest_train_shape(SMALL, sizes, batch_size=1, pad_multiple=50)
    assert padded == (-(-height // 50) * 50, -(-width // 50) * 50)


@pytest.mark.parametrize("changes", [
    {"data_aug_mosaic": 1.0}, {"data_aug_mixup": 1.0}, {"data_aug_copy_paste": 1.0}, {"data_aug_scale_jitter": 1.0},
    {"data_aug_mosaic": 0.5, "data_aug_mixup": 0.5, "data_aug_copy_paste": 0.5, "data_aug_scale_jitter": 0.5}],
    ids=" ".join)
@pytest.mark.parametrize("size", [(200, 90), (80, 120), (501, 333), (900, 7), (1, 40), (3, 2)])
def test_no_augmentation_passes_the_largest_shape(tmp_path, changes, size):
    """One image of each shape, beside a square of 100 px."""
    sizes = [size, (100, 100)]
    painted.write(tmp_path, [(one, {painted.RED: (0, 0, *one)}) for one in sizes])
    phases = {name: (0.0, 1.0) for name in ("mosaic", "mixup", "copy_paste")}
    options = dataclasses.replace(SMALL, aug_phases=phases, **changes)
    dataset = CocoDetection(tmp_path, "train", Augmentation(options))
    shapes = [dataset[i][0].shape[1:] for i in range(80)]
    height, width = largest_train_shape(options, sizes, batch_size=2)
    assert max(h for h, _ in shapes) <= height and max(w for _, w in shapes) <= width
    height, width = largest_train_shape(options, sizes, batch_size=1)
    assert max(h * w for h, w in shapes) <= 1.02 * height * width
    fixed = CocoDetection(tmp_path, "train", Augmentation(options, fix_size=True))
    assert {fixed[i][0].shape[1:] for i in range(20)} == {(96, 128)}


@pytest.mark.parametrize("given, device, multiple", [(None, "cpu", 1), (None, "cuda", 32), (64, "cpu", 64),
                                                     (1, "cuda", 1)])
def test_batches_are_padded_to_few_sizes_where_each_costs_time(given, device, multiple):
    assert padding_for(dataclasses.replace(SMALL, pad_multiple=given), torch.device(device)) == multiple
