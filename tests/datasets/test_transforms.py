"""Augmentations: sizes, and boxes that still surround what they surrounded, pixel by pixel."""
import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2

from datasets.coco import CocoDetection
from datasets.transforms import (
    EVERY,
    FILL,
    MEAN,
    STD,
    RandomSizeCrop,
    ResizeShorter,
    ResizeTo,
    ScaleJitter,
    ToPixels,
    ToTensors,
    keep_boxes,
    model_input,
    normalized,
    train_transforms,
    val_transforms,
)
from util.nested_tensor import NestedTensor
from util.options import DataOptions

SMALL = DataOptions(data_aug_scales=[64, 96], data_aug_max_size=128, data_aug_scales2_resize=[64, 80],
                    data_aug_scales2_crop=[48, 64])
GOLDEN = Path(__file__).parents[1] / "golden" / "val_pipeline.json"


def sample(width, height, *boxes):
    """A black image with a white rectangle in every box (xyxy px), and its target."""
    pixels = np.zeros((height, width, 3), np.uint8)
    for left, top, right, bottom in boxes:
        pixels[top:bottom, left:right] = 255
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    size = corners[:, 2:] - corners[:, :2]
    return Image.fromarray(pixels), {
        "boxes": tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=(height, width)),
        "labels": torch.arange(len(boxes)), "area": size.prod(1), "iscrowd": torch.zeros(len(boxes), dtype=torch.int64)}


def seen(white):
    """Box (xyxy px) around the true pixels [H, W], None if there are none."""
    rows, columns = np.flatnonzero(white.any(1)), np.flatnonzero(white.any(0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1] if len(rows) else None


def white_of(image):
    """Where a PIL image or a tensor [3, H, W] is white."""
    if isinstance(image, torch.Tensor):
        return (image > 127).all(0).numpy()
    return (np.asarray(image) > 127).all(-1)


def corners_of(image, boxes):
    """Boxes as xyxy px, whether they are that already or cxcywh in [0, 1]."""
    if not isinstance(image, torch.Tensor):
        return boxes
    centre, size = boxes[:, :2], boxes[:, 2:]
    height, width = image.shape[1:]
    return torch.cat([centre - size / 2, centre + size / 2], 1) * torch.tensor([width, height, width, height])


def check_surrounds(image, target, slack=1.01):
    """Whether the white rectangle is still there; if so, the one box ends where it ends."""
    found, boxes = seen(white_of(image)), corners_of(image, target["boxes"])
    if found is None:  # a sliver that is paler than half may be left
        assert len(boxes) == 0 or (boxes[:, 2:] - boxes[:, :2]).min() <= slack
        return False
    np.testing.assert_allclose(np.asarray(boxes), [found], atol=slack)
    return True


# resizing

@pytest.mark.parametrize("width, height, size, most, wanted", [
    (640, 480, 800, 1333, (1066, 800)), (480, 640, 800, 1333, (800, 1066)),  # sizes of the reference
    (640, 427, 800, 1333, (1199, 800)), (427, 640, 800, 1333, (800, 1199)),
    (500, 500, 800, 1333, (800, 800)), (1000, 500, 800, 1333, (1332, 666)), (500, 1000, 800, 1333, (666, 1332)),
    (2000, 1500, 600, 1333, (800, 600)), (1, 1, 800, 1333, (800, 800)), (3000, 2, 10, 100, (1500, 1)),
])
def test_the_shorter_side_gets_its_size_unless_the_longer_is_too_long(width, height, size, most, wanted):
    image, target = ResizeShorter([size], most)(*sample(width, height, (0, 0, width, height)))
    assert image.size == wanted
    torch.testing.assert_close(torch.Tensor(target["boxes"]), torch.tensor([[0.0, 0.0, *wanted]]))
    assert target["area"].item() == pytest.approx(wanted[0] * wanted[1], rel=1e-4)


def test_all_sizes_are_drawn_and_no_other():
    torch.manual_seed(0)
    resize = ResizeShorter([20, 30, 40], 1000)
    assert {resize(*sample(50, 60))[0].width for _ in range(60)} == {20, 30, 40}


@pytest.mark.parametrize("ratio", [1.2, 1.5, 2, 3.3, 7])
def test_the_longer_side_keeps_its_bound(ratio):
    for side in range(40, 60):
        image, _ = ResizeShorter([100], 130)(Image.new("RGB", (round(side * ratio), side)), sample(1, 1)[1])
        # As in the reference the shorter side is rounded, which moves the longer one by up to half the ratio.
        assert max(image.size) <= 130 + ratio / 2 and min(image.size) <= 100


@pytest.mark.parametrize("resize", [ResizeShorter([150], 1000), ResizeShorter([40], 1000), ResizeShorter([90], 100),
                                    ResizeTo(90, 70), ResizeTo(30, 200)])
def test_boxes_scale_with_the_image(resize):
    image, target = resize(*sample(120, 80, (30, 20, 70, 50)))
    assert check_surrounds(image, target)
    assert target["boxes"].canvas_size == image.size[::-1]
    assert target["area"].item() == pytest.approx(40 * 30 * image.width * image.height / (120 * 80))


@pytest.mark.parametrize("options", [SMALL, DataOptions(data_aug_vertical_flip=True)])
def test_training_sees_pillows_pixels_but_for_rounding(options):
    """It resizes tensors, and evaluation PIL images; half of the samples are resized twice."""
    whole = train_transforms(options)
    pillow = v2.Compose(whole.transforms[1:])
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    picture = Image.fromarray(pixels).resize((320, 240), Image.Resampling.BICUBIC)
    largest = []
    for seed in range(12):
        results = []
        for transforms in (whole, pillow):
            torch.manual_seed(seed)
            results.append(transforms(picture, sample(320, 240, (30, 20, 170, 150))[1]))
        (image, target), (wanted, its) = results
        assert type(image) is torch.Tensor and image.shape == wanted.shape
        assert torch.equal(target["boxes"], its["boxes"]) and torch.equal(target["area"], its["area"])
        largest.append((image.int() - wanted.int()).abs().max().item())
    assert max(largest) <= 2 and min(largest) <= 1


# flips

@pytest.mark.parametrize("box", [(0, 0, 10, 10), (30, 20, 70, 50), (100, 70, 120, 80)])
def test_flips_move_boxes(box):
    image, target = v2.RandomHorizontalFlip(p=1)(*sample(120, 80, box))
    left, top, right, bottom = box
    assert target["boxes"].tolist() == [[120 - right, top, 120 - left, bottom]]
    assert check_surrounds(image, target, slack=0)


def test_half_of_the_training_images_are_flipped():
    torch.manual_seed(0)
    augment = train_transforms(SMALL, fix_size=True)
    centres = [augment(*sample(120, 80, (0, 0, 20, 80)))[1]["boxes"][0, 0].item() for _ in range(60)]
    assert {round(x, 4) for x in centres} == {round(10 / 120, 4), round(110 / 120, 4)}
    assert 15 < sum(x > 0.5 for x in centres) < 45


@pytest.mark.parametrize("fix_size", [True, False])
def test_vertical_flips_happen_where_they_are_asked_for(fix_size):
    def tops(**options):
        torch.manual_seed(0)
        uncropped = dict(data_aug_scales2_resize=[80], data_aug_scales2_crop=[999, 999])
        augment = train_transforms(dataclasses.replace(SMALL, **uncropped, **options), fix_size)
        samples = [augment(*sample(120, 80, (0, 0, 120, 20))) for _ in range(60)]
        assert all(check_surrounds(image, target, slack=3) for image, target in samples)
        return [target["boxes"][0, 1].item() < 0.5 for _, target in samples]

    assert all(tops())
    assert 15 < sum(tops(data_aug_vertical_flip=True)) < 45


def test_colours_change_by_up_to_data_aug_color():
    """A dark grey, a light grey and a blue stripe, in many samples."""
    stripes = np.zeros((80, 120, 3), np.uint8)
    stripes[:, :40], stripes[:, 40:80], stripes[:, 80:] = 60, 140, (90, 100, 120)
    _, target = sample(120, 80)

    def colours(change):
        torch.manual_seed(0)
        augment = train_transforms(dataclasses.replace(SMALL, data_aug_color=change), fix_size=True)
        images = [augment(Image.fromarray(stripes), target)[0].permute(1, 2, 0) for _ in range(100)]
        pixels = torch.stack([image[40, [20, 64, 110]] for image in images]).float()
        flipped = pixels[:, 0, 2] > pixels[:, 0, 0] + 2  # the blue stripe is on the left
        return torch.where(flipped[:, None, None], pixels.flip(1), pixels)

    def ranges(pixels):
        """Of the mean, of the greys' ratio, and of the blue's spread over its mean: smallest and largest."""
        dark, light, blue = pixels.unbind(1)
        measures = pixels.mean((1, 2)), light.mean(1) / dark.mean(1), (blue[:, 2] - blue[:, 0]) / blue.mean(1)
        return [(values.min().item(), values.max().item()) for values in measures]

    for low, high in ranges(colours(0.0)):
        assert high - low < 0.01 * high
    changed, (brightness, contrast, saturation) = colours(0.3), ranges(colours(0.3))
    plain = [low for low, _ in ranges(colours(0.0))]
    for (low, high), value in zip((brightness, contrast, saturation), plain, strict=True):
        assert low < 0.85 * value and high > 1.15 * value
    assert 0.65 * plain[0] < brightness[0] and brightness[1] < 1.35 * plain[0]
    blue = changed[:, 2]
    assert ((blue[:, 2] > blue[:, 1]) & (blue[:, 1] > blue[:, 0])).all()  # the hue stays
    assert (changed[:, :2].amax(2) - changed[:, :2].amin(2) < 2).all()  # and grey stays grey


# crops

def test_crops_clip_and_drop_boxes():
    torch.manual_seed(0)
    kept = 0
    for _ in range(100):
        image, target = RandomSizeCrop(30, 60)(*sample(120, 80, (30, 20, 70, 50)))
        assert 30 <= image.width <= 60 and 30 <= image.height <= 60
        assert target["boxes"].canvas_size == image.size[::-1]
        assert len({len(target[name]) for name in ("boxes", "labels", "area", "iscrowd")}) == 1
        found = seen(white_of(image))
        assert target["boxes"].tolist() == ([] if found is None else [found])
        kept += found is not None
    assert 10 < kept < 100


def test_crops_keep_what_belongs_to_each_box():
    torch.manual_seed(0)
    boxes = [(0, 0, 10, 10), (60, 0, 70, 10), (0, 60, 10, 70), (60, 60, 70, 70)]
    counts = set()
    for _ in range(40):
        image, target = RandomSizeCrop(20, 70)(*sample(70, 70, *boxes))
        assert len(target["labels"]) == len(target["boxes"])
        for x0, y0, x1, y1 in target["boxes"].int().tolist():
            assert white_of(image)[y0:y1, x0:x1].all()
        counts.add(tuple(target["labels"].tolist()))
    assert len(counts) > 3


def test_the_area_of_a_cropped_box_is_no_larger_than_the_box():
    torch.manual_seed(0)
    for _ in range(20):
        _, target = RandomSizeCrop(30, 50)(*sample(60, 60, (5, 5, 55, 55)))
        left, top, right, bottom = target["boxes"][0].tolist()
        assert target["area"].item() <= (right - left) * (bottom - top) + 1e-3


def test_crops_of_small_images_take_what_there_is():
    image, target = RandomSizeCrop(384, 600)(*sample(50, 500, (10, 10, 40, 490)))
    assert image.width == 50 and 384 <= image.height <= 500
    assert len(target["boxes"]) == 1
    assert RandomSizeCrop(384, 600)(*sample(7, 5))[0].size == (7, 5)


def test_crops_reach_every_edge():
    torch.manual_seed(0)
    corners = [(0, 0, 1, 1), (19, 0, 20, 1), (0, 14, 1, 15), (19, 14, 20, 15)]
    found = set()
    for _ in range(300):
        found |= set(RandomSizeCrop(9, 10)(*sample(20, 15, *corners))[1]["labels"].tolist())
    assert found == {0, 1, 2, 3}


# scale jitter

def test_scale_jitter_keeps_the_usual_size_and_the_boxes_on_the_objects():
    torch.manual_seed(0)
    jitter, shares = ScaleJitter([60, 80], 200, 0.3, 2.0), []
    for _ in range(150):
        image, target = jitter(*ToPixels()(*sample(120, 80, (30, 20, 70, 50))))
        height, width = image.shape[1:]
        assert (width, height) in {(90, 60), (120, 80)} and target["boxes"].canvas_size == (height, width)
        if len(target["boxes"]):
            found = seen(white_of(image))
            np.testing.assert_allclose(np.asarray(target["boxes"]), [found], atol=1.51)
            left, top, right, bottom = target["boxes"][0].tolist()
            assert target["area"].item() <= (right - left) * (bottom - top) + 0.1
            if min(left, top, width - right, height - bottom) > 0:  # all of it is in the image
                shares.append((right - left) / (40 * height / 80))
    assert min(shares) < 0.4 and max(shares) > 1.7


def test_scale_jitter_puts_small_images_anywhere_on_fill():
    torch.manual_seed(0)
    jitter, corners = ScaleJitter([80], 200, 0.5, 0.5), set()
    for _ in range(60):
        image, target = jitter(*ToPixels()(*sample(120, 80, (0, 0, 120, 80))))
        outside = ~white_of(image)
        assert outside.sum() == 120 * 80 - 60 * 40
        assert {tuple(pixel) for pixel in image.permute(1, 2, 0)[outside].tolist()} == {FILL}
        left, top, right, bottom = target["boxes"][0].tolist()
        assert (right - left, bottom - top) == (60, 40) and target["area"].item() == 2400
        corners.add((left, top))
    assert len(corners) > 40 and max(x for x, _ in corners) > 50 and max(y for _, y in corners) > 34


def test_fill_is_as_good_as_padding():
    pixels = torch.tensor(FILL, dtype=torch.uint8)[:, None, None]
    assert normalized(pixels).abs().max() < 0.01


def test_part_of_the_samples_are_jittered():
    torch.manual_seed(0)
    options = dataclasses.replace(SMALL, data_aug_scale_jitter=0.25)
    for used, share in ((EVERY, 0.25), (EVERY - {"scale_jitter"}, 0)):
        augment = train_transforms(options, used=used)
        images = [augment(*sample(120, 80, (0, 0, 120, 80)))[0] for _ in range(200)]
        padded = [image.float().mean() < 254 for image in images]  # the white box fills the image otherwise
        assert abs(np.mean(padded) - share * 0.7 / 1.7) < 0.06


def test_without_further_augmentations_the_chain_is_detrs():
    shorter = ResizeShorter([64, 96], 128)
    crop = v2.Compose([ResizeShorter([64, 80], 128), RandomSizeCrop(48, 64), shorter])
    plain = v2.Compose([ToPixels(), v2.RandomHorizontalFlip(), v2.RandomChoice([shorter, crop]), ToTensors()])
    pixels = np.random.default_rng(0).integers(0, 256, (80, 120, 3), np.uint8)
    for seed in range(20):
        results = []
        for augment in (plain, train_transforms(SMALL), train_transforms(SMALL, used=EVERY - {"mosaic", "color"})):
            torch.manual_seed(seed)
            results.append(augment(Image.fromarray(pixels), sample(120, 80, (30, 20, 70, 50))[1]))
        for image, target in results[1:]:
            assert torch.equal(image, results[0][0])
            assert all(torch.equal(target[name], value) for name, value in results[0][1].items())


def test_without_the_crop_images_are_only_resized():
    torch.manual_seed(0)
    augment = train_transforms(SMALL, used=EVERY - {"crop"})
    assert {augment(*sample(120, 80, (0, 0, 120, 80)))[1]["size"][0].item() for _ in range(60)} == {64, 85}
    _, target = augment(*sample(120, 80, (0, 0, 120, 80)))
    torch.testing.assert_close(target["boxes"], torch.tensor([[0.5, 0.5, 1, 1]]))


def test_boxes_are_kept_with_all_that_belongs_to_them():
    _, target = sample(50, 50, (0, 0, 5, 5), (10, 10, 20, 20), (30, 30, 45, 45))
    kept = keep_boxes(target | {"other": 3}, torch.tensor([True, False, True]))
    assert kept["boxes"].tolist() == [[0, 0, 5, 5], [30, 30, 45, 45]] and kept["boxes"].canvas_size == (50, 50)
    assert kept["labels"].tolist() == [0, 2] and kept["area"].tolist() == [25, 225] and kept["other"] == 3
    assert len(target["labels"]) == 3


# the whole

@pytest.mark.parametrize("box", [(30, 20, 70, 50), (0, 0, 40, 25), (5, 5, 115, 75)])
def test_training_images_keep_their_boxes_on_the_objects(box):
    torch.manual_seed(0)
    augment = train_transforms(SMALL)
    visible = 0
    for _ in range(60):
        image, target = augment(*sample(120, 80, box))
        assert image.shape[1:] == tuple(target["size"].tolist()) and max(image.shape) <= 130
        # A crop of 48 px may be enlarged to 128: a pixel's rounding before it weighs that much more after.
        visible += check_surrounds(image, target, slack=3)
    assert visible > 30


def test_images_without_boxes_pass():
    torch.manual_seed(0)
    for augment in (train_transforms(SMALL), train_transforms(SMALL, fix_size=True), val_transforms(SMALL)):
        for _ in range(8):
            _, target = augment(*sample(120, 80))
            assert target["boxes"].shape == (0, 4) and target["labels"].shape == target["area"].shape == (0,)


def test_fix_size_gives_one_size_whatever_the_image():
    torch.manual_seed(0)
    for augment in (train_transforms(SMALL, fix_size=True), val_transforms(SMALL, fix_size=True)):
        for width, height in ((120, 80), (80, 120), (30, 200)):
            image, target = augment(*sample(width, height, (10, 20, 25, 70)))
            assert image.shape == (3, 96, 128) and target["size"].tolist() == [96, 128]
            assert check_surrounds(image, target, slack=3)


@pytest.mark.parametrize("factor, wanted", [(None, (3, 96, 96)), (0.5, (3, 48, 48)), (1.5, (3, 144, 144))])
def test_the_overlap_factor_scales_all_sizes(factor, wanted):
    options = DataOptions(**(vars(SMALL) | {"data_aug_scale_overlap": factor}))
    assert val_transforms(options)(*sample(50, 50))[0].shape == wanted
    factor = factor or 1
    longest = val_transforms(options)(*sample(500, 50))[0].shape[2]
    assert 128 * factor - 10 < longest <= 128 * factor + 5
    torch.manual_seed(0)
    sides = {train_transforms(options)(*sample(50, 50))[0].shape[1] for _ in range(40)}
    assert {64 * factor, 96 * factor} <= sides
    assert max(sides) <= 128 * factor + 5 and min(sides) >= 48 * factor


def test_validation_is_not_random_and_takes_the_largest_size():
    augment, images = val_transforms(DataOptions()), []
    for seed in range(4):
        torch.manual_seed(seed)
        image, target = augment(*sample(64, 48, (8, 8, 40, 40)))
        images.append(image)
        torch.testing.assert_close(target["boxes"], torch.tensor([[24 / 64, 24 / 48, 32 / 64, 32 / 48]]))
    assert images[0].shape == (3, 800, 1066)
    assert all(torch.equal(image, images[0]) for image in images)


def test_pixels_are_normalised_with_the_values_of_imagenet():
    image = Image.new("RGB", (4, 2))
    image.putpixel((3, 1), (255, 51, 102))
    pixels, target = ToTensors()(image, sample(4, 2, (1, 0, 3, 2))[1])
    assert pixels.dtype == torch.uint8 and pixels[:, 1, 3].tolist() == [255, 51, 102]
    tensor = normalized(pixels)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    assert (MEAN, STD) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert tensor.shape == (3, 2, 4) and tensor.dtype == torch.float32
    torch.testing.assert_close(tensor[:, 0, 0], -mean / std)
    torch.testing.assert_close(tensor[:, 1, 3], (torch.tensor([1.0, 0.2, 0.4]) - mean) / std)
    assert target["boxes"].tolist() == [[0.5, 0.5, 0.5, 1.0]] and target["size"].tolist() == [2, 4]


def test_a_batch_is_normalised_like_its_images_and_padded_with_zeros():
    images = [torch.randint(1, 256, (3, *size), dtype=torch.uint8) for size in ((5, 7), (6, 4))]
    batch = model_input(NestedTensor.from_list(images))
    wanted = NestedTensor.from_list([normalized(image) for image in images])
    assert torch.equal(batch.tensors, wanted.tensors) and torch.equal(batch.mask, wanted.mask)
    assert (batch.tensors[0, :, 5:] == 0).all() and (batch.tensors[1, :, :, 4:] == 0).all()
    unpadded = model_input(NestedTensor(images[0][None], None))
    assert torch.equal(unpadded.tensors[0], normalized(images[0])) and unpadded.mask is None


def test_a_batch_that_is_normalised_stays():
    batch = NestedTensor(torch.randn(1, 3, 2, 2), None)
    assert model_input(batch) is batch


@pytest.mark.skipif(not os.environ.get("COCO_MINI"), reason="COCO_MINI names no folder")
def test_validation_samples_are_those_of_the_reference():
    golden = json.loads(GOLDEN.read_text())
    dataset = CocoDetection(os.environ["COCO_MINI"], "val", val_transforms(DataOptions()))
    assert len(dataset) == golden["length"]
    for wanted in golden["samples"]:
        image, target = dataset[wanted["index"]]
        assert target["image_id"] == wanted["image_id"] and list(image.shape) == wanted["shape"]
        for name in ("labels", "iscrowd", "orig_size", "size"):
            assert target[name].tolist() == wanted[name], name
        for name, tolerance in (("boxes", 1e-6), ("area", 0.1)):
            torch.testing.assert_close(target[name], torch.tensor(wanted[name]), rtol=1e-5, atol=tolerance)
        image = normalized(image)
        torch.testing.assert_close(image.mean((1, 2)), torch.tensor(wanted["mean"]), rtol=0, atol=1e-3)
        torch.testing.assert_close(image.std((1, 2)), torch.tensor(wanted["std"]), rtol=0, atol=1e-3)
        # One level of 255 is 0.018 here, by which JPEG decoders may differ.
        pixels = torch.tensor([image[:, y, x].tolist() for y, x, *_ in wanted["pixels"]])
        torch.testing.assert_close(pixels, torch.tensor([p[2:] for p in wanted["pixels"]]), rtol=0, atol=0.04)


def test_evaluation_may_see_larger_images_than_training():
    larger = dataclasses.replace(SMALL, eval_size_factor=1.25)
    for size, wanted in (((50, 50), (3, 120, 120)), ((50, 100), (3, 80, 160))):
        assert val_transforms(larger)(*sample(*size[::-1]))[0].shape == wanted
    plain, changed = (train_transforms(options, fix_size=True)(*sample(50, 50))[0].shape for options in (SMALL, larger))
    assert plain == changed
