"""Samples of several images: the boxes still end where the painted pixels end."""
import dataclasses

import numpy as np
import pytest
import torch

from datasets.mixing import COVERED, Mixing, copy_paste, mixup, mosaic
from datasets.phases import DEFAULTS
from datasets.shapes import mosaic_size
from datasets.transforms import FILL
from tests.datasets import painted
from tests.datasets.coco_sets import SMALL
from tests.datasets.painted import BLUE, CYAN, GREEN, MAGENTA, RED, WHITE, YELLOW

FOUR = [((120, 90), {RED: (10, 20, 60, 70), GREEN: (70, 5, 119, 90)}), ((61, 95), {BLUE: (0, 0, 61, 40)}),
        ((333, 251), {YELLOW: (20, 30, 180, 200), MAGENTA: (200, 100, 333, 251)}),
        ((200, 31), {CYAN: (5, 5, 80, 30), WHITE: (120, 0, 200, 31)})]


def near(found, wanted, slack=1.01):
    assert found.keys() == wanted.keys()
    for label, box in found.items():
        np.testing.assert_allclose(box, wanted[label], atol=slack)


# mosaic

@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("size", [(120, 90), (301, 203), (90, 200)])
def test_the_boxes_of_a_mosaic_are_where_its_images_are(tmp_path, suffix, size):
    read = painted.reader(painted.write(tmp_path, FOUR, suffix))
    for seed in range(8):
        torch.manual_seed(seed)
        image, target = mosaic(read, [0, 1, 2, 3], size)
        assert image.size == size and target["boxes"].canvas_size == size[::-1]
        near(painted.extents(image), painted.boxes_of(image, target))
        sides = target["boxes"][:, 2:] - target["boxes"][:, :2]
        torch.testing.assert_close(target["area"], torch.Tensor(sides).prod(1), rtol=1e-3, atol=0.1)


def test_a_mosaic_shows_each_image_whole_and_fill_around_it(tmp_path):
    read = painted.reader(painted.write(tmp_path, [((50, 50), {WHITE: (0, 0, 50, 50)})]))
    torch.manual_seed(0)
    image, target = mosaic(read, [0, 0, 0, 0], (400, 100))
    pixels = np.asarray(image)
    assert set(map(tuple, pixels.reshape(-1, 3))) == {FILL, (255, 255, 255)}
    sides = (target["boxes"][:, 2:] - target["boxes"][:, :2]).numpy()
    assert (sides[:, 0] == sides[:, 1]).all() and 40 <= sides.min() and sides.max() <= 60
    assert (pixels == 255).all(-1).sum() == sides.prod(1).sum()  # none hides another


@pytest.mark.parametrize("size, wanted", [
    ((100, 60), (100, 60)), ((640, 480), (128, 96)), ((480, 640), (96, 128)), ((1, 1), (2, 2)), ((1, 90), (2, 90))])
def test_a_mosaic_has_the_size_of_its_first_image_unless_that_is_huge(size, wanted):
    assert mosaic_size(SMALL, size) == wanted


def test_mosaics_of_tiny_images(tmp_path):
    read = painted.reader(painted.write(tmp_path, [((1, 1), {RED: (0, 0, 1, 1)}), ((300, 1), {GREEN: (9, 0, 30, 1)})]))
    for first in (0, 1):
        image, target = mosaic(read, [first, 0, 1, 1], mosaic_size(SMALL, read.size(first)))
        assert min(image.size) >= 2 and len(target["boxes"]) == 4
        boxes = torch.Tensor(target["boxes"])
        assert (boxes[:, 2:] > boxes[:, :2]).all() and (boxes >= 0).all()


# mixup

def test_a_mixup_shows_both_images_with_all_their_boxes(tmp_path):
    read = painted.reader(painted.write(tmp_path, [
        ((90, 60), {RED: (10, 20, 60, 50)}), ((50, 80), {GREEN: (5, 10, 45, 60)})]))
    places = set()
    for seed in range(20):
        torch.manual_seed(seed)
        first = read(0)
        image, target = mixup(first, read(1, within=first[0].size))
        assert image.size == (90, 60)
        for channel, label in ((0, RED), (1, GREEN)):
            only = np.zeros((60, 90, 3), np.uint8)
            only[..., channel] = np.asarray(image)[..., channel]
            near({label: painted.extents(only, 60, 60)[label]}, {label: painted.boxes_of(image, target)[label]})
        green = np.asarray(image)[..., 1].max()
        assert 0.44 * 255 <= green <= 0.56 * 255
        places.add(tuple(target["boxes"][1].int().tolist()))
    assert len(places) > 5


def test_images_are_left_alone_where_the_other_one_is_not(tmp_path):
    read = painted.reader(painted.write(tmp_path, [((90, 60), {RED: (0, 0, 90, 60)}), ((20, 60), {})]))
    image, target = mixup(read(0), read(1, within=(90, 60)))
    red = np.asarray(image)[..., 0]
    assert (red == 255).sum() == 70 * 60 and target["boxes"].tolist() == [[0, 0, 90, 60]]


# copy-paste

def test_pasted_objects_have_their_boxes_and_hide_nobody(tmp_path):
    read = painted.reader(painted.write(tmp_path, [
        ((120, 90), {RED: (10, 20, 60, 70)}), ((240, 180), {GREEN: (20, 30, 80, 90), BLUE: (150, 20, 190, 130)})]))
    counts = []
    for seed in range(40):
        torch.manual_seed(seed)
        image, target = copy_paste(read(0), read(1, within=(120, 90)))
        found, boxes = painted.extents(image), painted.boxes_of(image, target)
        hidden = 1 - ((np.asarray(image) == [255, 0, 0]).all(-1).sum() / 2500)
        assert hidden <= COVERED + 0.02  # a rectangle's ends are whole pixels
        pasted = {label: box for label, box in boxes.items() if label != RED}
        near({label: found[label] for label in pasted}, pasted, slack=1.01 if len(pasted) == 1 else 1 + COVERED * 55)
        assert boxes[RED] == [10, 20, 60, 70]
        counts.append(len(boxes))
        if GREEN in boxes:
            assert target["area"][target["labels"] == GREEN].item() == pytest.approx(900)
    assert set(counts) == {2, 3}


def test_what_lies_in_a_pasted_rectangle_comes_with_it_and_nothing_is_pasted_twice(tmp_path):
    read = painted.reader(painted.write(tmp_path, [
        ((100, 100), {}), ((100, 100), {GREEN: (10, 10, 70, 70), BLUE: (20, 20, 40, 50), RED: (60, 30, 90, 60)})]))
    together = 0
    for seed in range(30):
        torch.manual_seed(seed)
        image, target = copy_paste(read(0), read(1, within=(100, 100)))
        boxes = painted.boxes_of(image, target)
        near({BLUE: painted.extents(image)[BLUE]} if BLUE in boxes else {},
             {BLUE: boxes[BLUE]} if BLUE in boxes else {})
        if GREEN in boxes:  # the blue one is in it, a third of the red one is not enough
            assert BLUE in boxes
            together += 1
    assert together > 5


def test_there_is_no_place_on_an_image_that_is_full(tmp_path):
    read = painted.reader(painted.write(tmp_path, [
        ((50, 50), {RED: (0, 0, 50, 50)}), ((50, 50), {GREEN: (5, 5, 45, 45)})]))
    image, target = copy_paste(read(0), read(1, within=(50, 50)))
    assert target["labels"].tolist() == [RED] and (np.asarray(image) == [255, 0, 0]).all()


def test_an_image_without_boxes_gives_and_takes(tmp_path):
    read = painted.reader(painted.write(tmp_path, [((50, 40), {}), ((60, 70), {GREEN: (5, 5, 25, 30)})]))
    for mix in (copy_paste, mixup):
        assert mix(read(1), read(0, within=(60, 70)))[1]["labels"].tolist() == [GREEN]
        assert mix(read(0), read(1, within=(50, 40)))[1]["labels"].tolist() == [GREEN]
        assert mix(read(0), read(0, within=(50, 40)))[1]["boxes"].shape == (0, 4)


# the choice

@pytest.mark.parametrize("name, share", [("mosaic", 0.3), ("mixup", 0.6), ("copy_paste", 0.5), ("mosaic", 1.0)])
def test_each_is_as_frequent_as_its_key_says(tmp_path, name, share):
    read = painted.reader(painted.write(tmp_path, [((8, 8), {WHITE: (2, 2, 6, 6)})] * 2))
    mixing = Mixing(dataclasses.replace(SMALL, **{f"data_aug_{name}": share}))
    torch.manual_seed(0)
    plain = read(0)[0].tobytes()
    changed = [mixing(read, 0, set(DEFAULTS))[0].tobytes() != plain for _ in range(200)]
    if name == "mosaic":
        assert abs(np.mean(changed) - share) < 0.1
    torch.manual_seed(0)
    read.shown.clear()
    for _ in range(200):
        mixing(read, 0, set(DEFAULTS))
    partners = 3 if name == "mosaic" else 1
    assert abs((len(read.shown) - 200) / 200 / partners - share) < 0.1
    torch.manual_seed(0)
    read.shown.clear()
    for _ in range(20):
        mixing(read, 0, set(DEFAULTS) - {name})
    assert read.shown == [0] * 20


def test_what_is_off_draws_no_random_number(tmp_path):
    read = painted.reader(painted.write(tmp_path, FOUR))
    state = torch.get_rng_state()
    image, target = Mixing(SMALL)(read, 2, set(DEFAULTS))
    assert torch.equal(torch.get_rng_state(), state) and read.shown == [2]
    assert image.size == (333, 251) and target["labels"].tolist() == [YELLOW, MAGENTA]


@pytest.mark.parametrize("keys, most", [
    ({}, 7), ({"mosaic": 0.1}, 28), ({"mixup": 1.0}, 14), ({"mosaic": 1.0, "mixup": 1.0, "copy_paste": 1.0}, 42)])
def test_the_most_targets_of_a_sample(keys, most):
    options = dataclasses.replace(SMALL, **{f"data_aug_{name}": share for name, share in keys.items()})
    assert Mixing(options).most_targets(7) == most


def test_no_sample_has_more_targets_than_that(tmp_path):
    crowd = {RED: (0, 0, 60, 60), GREEN: (10, 10, 30, 30), BLUE: (40, 40, 50, 50), WHITE: (60, 0, 80, 20)}
    read = painted.reader(painted.write(tmp_path, [((90, 90), crowd)] * 4))
    options = dataclasses.replace(SMALL, data_aug_mosaic=1.0, data_aug_mixup=1.0, data_aug_copy_paste=1.0)
    torch.manual_seed(0)
    counts = [len(Mixing(options)(read, 0, set(DEFAULTS))[1]["labels"]) for _ in range(50)]
    assert 20 < max(counts) <= Mixing(options).most_targets(4) == 24
