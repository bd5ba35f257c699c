"""The largest images of a training: reached, and never passed."""
import dataclasses

import pytest
import torch

from datasets.shapes import largest_train_shape, padding_for
from datasets.transforms import train_transforms
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


@pytest.mark.parametrize("given, device, multiple", [(None, "cpu", 1), (None, "cuda", 32), (64, "cpu", 64),
                                                     (1, "cuda", 1)])
def test_batches_are_padded_to_few_sizes_where_each_costs_time(given, device, multiple):
    assert padding_for(dataclasses.replace(SMALL, pad_multiple=given), torch.device(device)) == multiple
