"""The DETR augmentations (DETR, section 4) as torchvision v2 transforms of an image and its target.

Images are PIL's or uint8 tensors [3, H, W], and uint8 at the end: the device normalises them (`model_input`), so
that a data-loading process passes a quarter of the bytes. Training resizes tensors, since PyTorch has faster kernels
for it than Pillow; evaluation keeps to PIL's, as detection does. A pixel differs by 1 of 255 at most at each resize.

A target is a dict with "boxes" (tv_tensors.BoundingBoxes, xyxy pixels) and per-box tensors "labels", "area", "iscrowd".
All randomness is torch's.
"""
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.ops import box_convert
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from util.integers import round_up
from util.nested_tensor import NestedTensor
from util.options import DataOptions

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet
PER_BOX = ("boxes", "labels", "area", "iscrowd")


Picture = Image.Image | Tensor


class ToPixels(nn.Module):
    """The image as a uint8 tensor [3, H, W] whose values lie pixel by pixel in memory, as PyTorch's resize wants."""

    def forward(self, image: Image.Image, target: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        return tv_tensors.Image(torch.from_numpy(np.array(image)).permute(2, 0, 1)), target


class ResizeShorter(nn.Module):
    """Resizes the shorter side to one of `sizes` px, or less where the longer side would exceed `max_size` px."""

    def __init__(self, sizes: list[int], max_size: int):
        super().__init__()
        self.sizes, self.max_size = sizes, max_size

    def forward(self, image: Picture, target: dict[str, Any]) -> tuple[Picture, dict[str, Any]]:
        height, width = F.get_size(image)
        return _resize(image, target, self.result(width, height, self.sizes[_randint(0, len(self.sizes) - 1)]))

    def result(self, width: int, height: int, size: int) -> tuple[int, int]:
        """(height, width) of an image of width x height px whose shorter side becomes `size`."""
        short, long = min(width, height), max(width, height)
        if long / short * size > self.max_size:
            size = round(self.max_size * short / long)
        size = max(size, 1)
        long_size = max(int(size * long / short), 1)
        return (size, long_size) if height <= width else (long_size, size)


class ResizeTo(nn.Module):
    """Resizes to `height` x `width` px, whatever the aspect ratio."""

    def __init__(self, height: int, width: int):
        super().__init__()
        self.size = (height, width)

    def forward(self, image: Picture, target: dict[str, Any]) -> tuple[Picture, dict[str, Any]]:
        return _resize(image, target, self.size)


class RandomSizeCrop(nn.Module):
    """Crops a region with sides from `low` to `high` px, or the image's side where that is smaller."""

    def __init__(self, low: int, high: int):
        super().__init__()
        self.low, self.high = low, high

    def forward(self, image: Picture, target: dict[str, Any]) -> tuple[Picture, dict[str, Any]]:
        sides = F.get_size(image)[::-1]
        width, height = (_randint(min(self.low, side), min(self.high, side)) for side in sides)
        left, top = _randint(0, sides[0] - width), _randint(0, sides[1] - height)
        window = (top, left, height, width)
        boxes = F.crop(target["boxes"], *window)  # clips to the window
        sides = (boxes[:, 2:] - boxes[:, :2]).as_subclass(Tensor)
        target = target | {"boxes": boxes, "area": torch.minimum(target["area"], sides.prod(1))}
        return F.crop(image, *window), keep_boxes(target, (boxes[:, 2:] > boxes[:, :2]).all(1))


class ToTensors(nn.Module):
    """uint8 image [3, H, W]; boxes as cxcywh in [0, 1]; "size" (H, W) in px."""

    def forward(self, image: Picture, target: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        height, width = F.get_size(image)
        pixels = image.as_subclass(Tensor) if isinstance(image, Tensor) else F.pil_to_tensor(image)
        scale = torch.tensor([width, height, width, height], dtype=torch.float32)
        boxes = box_convert(target["boxes"].as_subclass(Tensor), "xyxy", "cxcywh") / scale
        return pixels, target | {"boxes": boxes, "size": torch.tensor([height, width])}


def normalized(pixels: Tensor) -> Tensor:
    """uint8 images [..., 3, H, W] as a model reads them: float32, each channel by ImageNet's mean and deviation."""
    return F.normalize(F.to_dtype(pixels, torch.float32, scale=True), MEAN, STD, inplace=True)


def model_input(samples: NestedTensor) -> NestedTensor:
    """A loader's batch of pixels, normalised where it lies, with 0 as padding. A normalised one stays as it is."""
    if samples.tensors.dtype != torch.uint8:
        return samples
    images = normalized(samples.tensors)
    return NestedTensor(images if samples.mask is None else images.masked_fill_(samples.mask[:, None], 0), samples.mask)


def keep_boxes(target: dict[str, Any], keep: Tensor) -> dict[str, Any]:
    """The target with only the boxes where keep [n] is True."""
    boxes = tv_tensors.wrap(target["boxes"][keep], like=target["boxes"])
    return target | {name: target[name][keep] for name in PER_BOX if name != "boxes"} | {"boxes": boxes}


def train_transforms(options: DataOptions, fix_size: bool = False) -> nn.Module:
    """Flips, then a resize to one of the scales, half of the time after a random crop, then color jitter.
    fix_size: all images get the same size."""
    scales, max_size = _scaled(options.data_aug_scales, options), _scaled([options.data_aug_max_size], options)[0]
    flips: list[nn.Module] = [ToPixels(), v2.RandomHorizontalFlip()]
    flips += [v2.RandomVerticalFlip()] if options.data_aug_vertical_flip else []
    if fix_size:
        return v2.Compose([*flips, ResizeTo(max(scales), max_size), *_color_jitter(options), ToTensors()])
    # The resize before the crop is bounded too: a panorama would grow to tens of thousands of pixels.
    crop = v2.Compose([ResizeShorter(_scaled(options.data_aug_scales2_resize, options), max_size),
                       RandomSizeCrop(*_scaled(options.data_aug_scales2_crop, options)),
                       ResizeShorter(scales, max_size)])
    return v2.Compose([*flips, v2.RandomChoice([ResizeShorter(scales, max_size), crop]), *_color_jitter(options),
                       ToTensors()])


def val_transforms(options: DataOptions, fix_size: bool = False) -> nn.Module:
    """The largest scale times `eval_size_factor` (Touvron et al., "Fixing the train-test resolution discrepancy"),
    without randomness."""
    size, max_size = eval_limits(options)
    resize = ResizeTo(size, max_size) if fix_size else ResizeShorter([size], max_size)
    return v2.Compose([resize, ToTensors()])


def eval_limits(options: DataOptions) -> tuple[int, int]:
    """The shorter side in evaluation, and the maximum of the longer side, px."""
    largest = _scaled([max(options.data_aug_scales), options.data_aug_max_size], options)
    size, max_size = (round(size * options.eval_size_factor) for size in largest)
    return size, max_size


def train_limits(options: DataOptions) -> tuple[int, int, int]:
    """The smallest and the largest shorter side in training, and the maximum of the longer side, px."""
    scales, max_size = _scaled(options.data_aug_scales, options), _scaled([options.data_aug_max_size], options)[0]
    return min(scales), max(scales), max_size


def largest_train_shape(options: DataOptions, sizes: Iterable[tuple[int, int]], batch_size: int,
                        fix_size: bool = False, pad_multiple: int = 1) -> tuple[int, int]:
    """The largest (height, width) that train_transforms and padding give a batch of images of these sizes (width,
    height). For a single image that is the shape with the largest area; in a batch of several, the largest height may
    meet the largest width. pad_multiple: see padding_for.
    """
    height, width = _largest_shape(options, sizes, batch_size, fix_size)
    return round_up(height, pad_multiple), round_up(width, pad_multiple)


def padding_for(options: DataOptions, device: torch.device) -> int:
    """The height and the width of a training batch are multiples of this, px.

    On a GPU, cuDNN plans every convolution anew for each input size, and without padding nearly every batch of a DETR
    training has a new size.
    """
    return options.pad_multiple or (32 if device.type == "cuda" else 1)


def _largest_shape(options: DataOptions, sizes: Iterable[tuple[int, int]], batch_size: int,
                   fix_size: bool) -> tuple[int, int]:
    """largest_train_shape before padding to multiples."""
    _, size, max_size = train_limits(options)
    if fix_size:
        return size, max_size
    resize, (low, high) = ResizeShorter([size], max_size), _scaled(options.data_aug_scales2_crop, options)
    shapes = set()
    for original in set(sizes):
        shapes.add(resize.result(*original, size))
        for resized in _scaled(options.data_aug_scales2_resize, options):
            sides = resize.result(*original, resized)[::-1]
            smallest, largest = ([min(limit, side) for side in sides] for limit in (low, high))
            for long, short in ((0, 1), (1, 0)):
                # The longest crop, but no longer than what fills size x max_size.
                crop = largest.copy()
                crop[short] = min(largest[short], max(smallest[short], round(largest[long] * size / max_size)))
                shapes.add(resize.result(crop[0], crop[1], size))
    if batch_size == 1:
        return max(shapes, key=lambda shape: shape[0] * shape[1])
    return max(height for height, _ in shapes), max(width for _, width in shapes)


def _color_jitter(options: DataOptions) -> list[nn.Module]:
    """Jitter by data_aug_color. Not of the hue: on a CPU that takes longer than everything else in loading an image."""
    strength = options.data_aug_color
    return [v2.ColorJitter(strength, strength, strength)] if strength else []


def _scaled(sizes: list[int], options: DataOptions) -> list[int]:
    factor = options.data_aug_scale_overlap
    return [int(size * factor) for size in sizes] if factor else sizes


def _resize(image: Picture, target: dict[str, Any], size: tuple[int, int]) -> tuple[Picture, dict[str, Any]]:
    height, width = F.get_size(image)
    area = target["area"] * (size[0] * size[1] / (width * height))
    return F.resize(image, size), target | {"boxes": F.resize(target["boxes"], size), "area": area}


def _randint(low: int, high: int) -> int:
    """Uniform integer from low to high, inclusive."""
    return int(torch.randint(low, high + 1, ()))
