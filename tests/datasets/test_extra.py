"""Transforms of one's own: boxes, labels and areas through both libraries, and what is refused."""
import pickle
import random
import sys
import textwrap

import numpy as np
import pytest
import torch

from datasets.extra import Extra, seeded
from datasets.transforms import ToPixels, keep_boxes
from tests.datasets.test_mixing import near
from tests.datasets.test_transforms import corners_of, sample, seen, white_of
from util.errors import UserError

TORCHVISION = """
    import torch
    from torchvision.transforms import v2

    def flip():
        return v2.RandomHorizontalFlip(p=1)

    def iou_crop():
        return v2.Compose([v2.RandomIoUCrop(), v2.SanitizeBoundingBoxes()])

    def crop_that_keeps_all():
        return v2.CenterCrop((40, 60))

    def zoom_out():
        return v2.RandomZoomOut(fill=0, side_range=(3, 3), p=1)

    def centres():
        return v2.Compose([v2.ConvertBoundingBoxFormat("CXCYWH"), v2.Resize((40, 60))])

    def drop_boxes_only():
        class Drop(v2.Transform):
            def forward(self, image, target):
                return image, target | {"boxes": target["boxes"][:1]}
        return Drop()

    def result(change):
        class Change(v2.Transform):
            def forward(self, image, target):
                return change(image, target)
        return Change()

    def nan():
        return result(lambda image, target: (image, target | {"boxes": target["boxes"] * float("nan")}))

    def inverted():
        return result(lambda image, target: (image, target | {"boxes": target["boxes"].flip(1)}))

    def classes():
        return result(lambda image, target: (image, target | {"labels": target["labels"] + 90}))

    def floats():
        return v2.ToDtype(torch.float32, scale=True)

    def grey():
        return result(lambda image, target: (image[:1], target))

    def one():
        return result(lambda image, target: image)

    def no_boxes():
        return result(lambda image, target: (image, {}))

    def noise():
        import random
        import numpy as np

        return result(lambda image, target: (
            image + torch.randint(9, (1,), dtype=torch.uint8) + random.randint(0, 9) + np.random.randint(9), target))

    def number():
        return 3

    def fails():
        raise RuntimeError("no luck")

    text = "not callable"
"""
ALBUMENTATIONS = """
    import albumentations as A

    def flip():
        return A.HorizontalFlip(p=1)

    def crop():
        return A.Compose([A.CenterCrop(40, 60)])

    def crop_with_limits():
        return A.Compose([A.CenterCrop(40, 60)], bbox_params=A.BboxParams("coco", ["names"], min_visibility=0.9))

    def one_of():
        return A.OneOf([A.HorizontalFlip(p=1), A.VerticalFlip(p=1)], p=1)

    def noise():
        return A.Compose([A.RandomBrightnessContrast(p=1), A.GaussNoise(p=1)])

    def grow():
        return A.PadIfNeeded(160, 240)
"""
BOXES = [(10, 20, 40, 50), (60, 30, 110, 75), (0, 0, 8, 8)]


@pytest.fixture
def extra(tmp_path):
    """extra(name, code): what that function in a file returns."""
    def extra(name, code=TORCHVISION):
        path = tmp_path / "mine.py"
        path.write_text(textwrap.dedent(code), encoding="utf-8")
        return Extra(f"{path}:{name}")
    return extra


@pytest.fixture
def album(extra):
    pytest.importorskip("albumentations")
    return lambda name: extra(name, ALBUMENTATIONS)


def given(*boxes, width=120, height=80):
    """Labels are 10, 11, ...; areas half of the boxes'."""
    image, target = ToPixels()(*sample(width, height, *boxes))
    return image, target | {"labels": target["labels"] + 10, "area": target["area"] / 2}


def check_boxes(image, target, wanted):
    """wanted: xyxy by label."""
    assert image.dtype == torch.uint8 and target["boxes"].canvas_size == tuple(image.shape[1:])
    boxes = dict(zip(target["labels"].tolist(), torch.Tensor(target["boxes"]).tolist()))
    near(boxes, wanted, slack=1e-2)
    for box, area in zip(target["boxes"].tolist(), target["area"].tolist()):
        assert area == pytest.approx((box[2] - box[0]) * (box[3] - box[1]) / 2, rel=1e-3)
    assert target["iscrowd"].tolist() == [0] * len(boxes)


def test_torchvisions_transforms_move_boxes(extra):
    check_boxes(*extra("flip")(*given(*BOXES)), {10: (80, 20, 110, 50), 11: (10, 30, 60, 75), 12: (112, 0, 120, 8)})
    check_boxes(*extra("centres")(*given(*BOXES)), {10: (5, 10, 20, 25), 11: (30, 15, 55, 37.5), 12: (0, 0, 4, 4)})


def test_boxes_that_are_dropped_take_all_that_is_theirs(extra):
    crop, counts = extra("iou_crop"), set()
    for seed in range(30):
        torch.manual_seed(seed)
        _, target = crop(*given(*BOXES))
        kept = [label - 10 for label in target["labels"].tolist()]
        assert len({len(target[name]) for name in ("boxes", "labels", "area", "iscrowd")}) == 1
        sides = (target["boxes"][:, 2:] - target["boxes"][:, :2]).numpy()
        np.testing.assert_allclose(target["area"], sides.prod(1) / 2, rtol=1e-4)
        assert all((sides[i] <= np.subtract(BOXES[k][2:], BOXES[k][:2]) + 0.01).all() for i, k in enumerate(kept))
        counts.add(len(kept))
    assert len(counts) > 1


def test_boxes_without_a_part_in_the_image_are_dropped(extra):
    image, target = extra("crop_that_keeps_all")(*given(*BOXES))
    assert image.shape[1:] == (40, 60)
    check_boxes(image, target, {10: (0, 0, 10, 30), 11: (30, 10, 60, 40)})


def test_a_larger_image_is_scaled_back_into_its_size(extra):
    torch.manual_seed(0)
    image, target = extra("zoom_out")(*given((10, 20, 70, 60)))
    assert image.shape[1:] == (80, 120) and target["boxes"].canvas_size == (80, 120)
    np.testing.assert_allclose(corners_of(None, target["boxes"]), [seen(white_of(image))], atol=1.01)
    assert target["area"].item() == pytest.approx(60 * 40 / 9 / 2, rel=0.01)


def test_images_without_boxes_pass(extra):
    for name in ("flip", "iou_crop", "zoom_out"):
        image, target = extra(name)(*given())
        assert target["boxes"].shape == (0, 4) and len(target["labels"]) == len(target["area"]) == 0


def test_albumentations_move_and_drop_boxes(album):
    check_boxes(*album("flip")(*given(*BOXES)), {10: (80, 20, 110, 50), 11: (10, 30, 60, 75), 12: (112, 0, 120, 8)})
    check_boxes(*album("crop")(*given(*BOXES)), {10: (0, 0, 10, 30), 11: (30, 10, 60, 40)})
    check_boxes(*album("crop_with_limits")(*given(*BOXES)), {})
    check_boxes(*album("crop_with_limits")(*given((40, 30, 80, 50))), {10: (10, 10, 50, 30)})
    image, target = album("grow")(*given((10, 20, 70, 60)))
    assert image.shape[1:] == (80, 120)
    np.testing.assert_allclose(corners_of(None, target["boxes"]), [seen(white_of(image))], atol=1.01)
    assert album("one_of")(*given())[1]["boxes"].shape == (0, 4)


def test_albumentations_follow_torchs_seed(album):
    noise = album("noise")
    results = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        results.append(noise(*given(*BOXES))[0])
    assert torch.equal(results[0], results[2]) and not torch.equal(results[0], results[1])


def test_all_random_numbers_follow_torchs_seed_and_leave_the_global_states_alone(extra):
    noise, values = extra("noise"), []
    states = random.getstate(), np.random.get_state()[1].tolist()
    for seed in (1, 2, 3, 1):
        torch.manual_seed(seed)
        values.append(noise(*given())[0].max().item())
    assert values[0] == values[3] and len(set(values)) > 1
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states
    with pytest.raises(KeyError), seeded():
        raise KeyError
    assert random.getstate() == states[0]


def test_other_processes_make_it_anew(extra):
    again = pickle.loads(pickle.dumps(extra("flip")))  # noqa: S301
    check_boxes(*again(*given((10, 20, 40, 50))), {10: (80, 20, 110, 50)})


def test_a_module_is_found_by_its_name(tmp_path, monkeypatch):
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package/of_mine.py").write_text(textwrap.dedent(TORCHVISION), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    check_boxes(*Extra("my_package.of_mine:flip")(*given((10, 20, 40, 50))), {10: (80, 20, 110, 50)})


# what is refused

@pytest.mark.parametrize("name, wanted", [
    ("flop", "has no function 'flop'. Did you mean 'flip'?"), ("text", "has no function 'text'"),
    ("number", "must return a transform of torchvision.transforms.v2 or an Albumentations pipeline, not int"),
    ("fails", "the call fails: RuntimeError: no luck")])
def test_what_is_no_transform(extra, name, wanted):
    with pytest.raises(UserError) as error:
        extra(name)
    assert wanted in str(error.value) and "data_aug_extra=" in str(error.value)


@pytest.mark.parametrize("code, wanted", [
    ("import not_there_at_all", "there is no module not_there_at_all, which .*mine.py imports: pip install"),
    ("1 / 0", "mine.py does not run: ZeroDivisionError"), ("def flip(:", "mine.py does not run: SyntaxError")])
def test_code_that_does_not_run(extra, code, wanted):
    with pytest.raises(UserError, match=wanted):
        extra("flip", code)


@pytest.mark.parametrize("path, wanted", [
    ("a_module_that_is_not_there:flip", "there is no module a_module_that_is_not_there$"),
    ("util.not_there:flip", "there is no module util.not_there$"),
    ("not_there.py:flip", "there is no file not_there.py"),
    ("flip", "must be package.module:name or path/to/file.py:name"), ("util.errors:", "must be package.module:name")])
def test_paths_that_lead_nowhere(path, wanted):
    before = set(sys.modules)
    with pytest.raises(UserError, match=wanted):
        Extra(path)
    assert not any("not_there" in name for name in set(sys.modules) - before)


@pytest.mark.parametrize("name, wanted", [
    ("drop_boxes_only", "has 1 boxes, but 3 labels: .*SanitizeBoundingBoxes"),
    ("nan", "a broken box, such as"), ("inverted", "a broken box, such as"), ("classes", "number its boxes"),
    ("floats", r"it is torch.float32 \[3, 80, 120\]"), ("grey", r"it is torch.uint8 \[1, 80, 120\]"),
    ("one", "has no boxes"), ("no_boxes", "has no boxes")])
def test_results_that_are_no_image_with_boxes(extra, name, wanted):
    broken = extra(name)
    with pytest.raises(UserError, match=wanted):
        broken(*given(*BOXES))


def test_boxes_that_are_kept_are_those_of_keep_boxes(extra):
    _, target = given(*BOXES)
    _, found = extra("flip")(*given(*BOXES))
    assert found.keys() == keep_boxes(target, torch.tensor([True, True, True])).keys()
