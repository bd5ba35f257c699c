from itertools import islice

import pytest
import torch

from tools.data_loading import (
    BATCH,
    compare_augmentations,
    compare_draft,
    compare_loaders,
    decoded,
    rate,
    torchvision_loader,
)
from tools.training_parts import write_pictures
from util.errors import UserError
from util.options import DataOptions

SMALL = DataOptions(data_aug_scales=[64], data_aug_max_size=128, data_aug_scales2_resize=[64, 80],
                    data_aug_scales2_crop=[48, 60])


@pytest.mark.parametrize("tensors", [True, False])
def test_torchvisions_loader_makes_the_same_kind_of_samples(tmp_path, tensors):
    write_pictures(tmp_path)
    torch.manual_seed(0)
    samples = [sample for batch in islice(torchvision_loader(tmp_path, SMALL, tensors), 6) for sample in batch]
    assert len(samples) == 6 * BATCH
    for image, target in samples:
        assert image.dtype == torch.float32 and min(image.shape[1:]) in (63, 64) and image.min() < 0
        assert len(target["boxes"]) == len(target["labels"]) <= 7
    assert sum(len(target["labels"]) for _, target in samples) > 40


def test_the_rate_is_that_after_the_first_batches():
    assert rate(range(10), 100) > 1000


@pytest.mark.slow
def test_loaders_are_compared():
    text = compare_loaders(2)
    assert "this project" in text and text.count("\n") == 5


@pytest.mark.slow
def test_augmentations_are_compared(coco_root):
    lines = compare_augmentations(coco_root, 2).splitlines()
    rows = {cells[1].strip(): float(cells[3]) for cells in (line.split("|") for line in lines[2:])}
    assert rows["none"] == 1 and len(rows) == 7 and {"mosaic", "copy paste", "all"} <= rows.keys()
    assert all(times > 0 for times in rows.values())


def test_draft_mode_changes_pixels_where_half_the_picture_is_enough(tmp_path):
    write_pictures(tmp_path)
    cells = {side: [cell.strip() for cell in compare_draft(tmp_path, side).splitlines()[2].split("|")[2:-1]]
             for side in (240, 241)}
    assert int(cells[240][2]) > 0 and float(cells[240][3]) > 0
    assert cells[241][2:] == ["0", "0.00"] and float(cells[241][0]) > 0
    assert decoded(next((tmp_path / "train2017").iterdir()), side=100).shape == (120, 160, 3)


def test_a_folder_without_pictures_is_told(tmp_path):
    with pytest.raises(UserError, match="no .jpg in"):
        compare_draft(tmp_path, side=240)
