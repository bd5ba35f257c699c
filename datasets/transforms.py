"""The DETR augmentations (DETR, section 4) as torchvision v2 transforms of an image and its target.

Images are PIL's or uint8 tensors [3, H, W], and uint8 at the end: the device normalises them (`model_input`), so
that a data-loading process passes a quarter of the bytes. Training resizes tensors, since PyTorch has faster kernels
for it than Pillow; evaluation keeps to PIL's, as detection does. A pixel differs by 1 of 255 at most at each resize.

A target is a dict with "boxes" (tv_tensors.BoundingBoxes, xyxy pixels) and per-box tensors "labels", "area", "iscrowd".
All randomness is torch's.
"""
from collections.abc import Callable, Set
from typing import Any, TypeVar, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.ops import box_convert
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from util.nested_tensor import NestedTensor
from util.options import Augmented, DataOptions

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet
FILL = tuple(round(255 * value) for value in MEAN)  # a colour that becomes about 0, as a batch's padding is
PER_BOX = ("boxes", "labels", "area", "iscrowd")
SCALES = (0.3, 2.0)  # of the scale jitter
EVERY: frozenset[str] = frozenset(get_args(Augmented))

Picture = Image.Image | Tensor
P = TypeVar("P", Image.Image, Tensor, Picture)


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
        return resize(image, target, self.result(width, height, self.chosen()))

    def chosen(self) -> int:
        """One of the sizes, at random."""
        return self.sizes[randint(0, len(self.sizes) - 1)]

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
        return resize(image, target, self.size)


class RandomSizeCrop(nn.Module):
    """Crops a region with sides from `low` to `high` px, or the image's side where that is smaller."""

    def __init__(self, low: int, high: int):
        super().__init__()
        self.low, self.high = low, high

    def forward(self, image: Picture, target: dict[str, Any]) -> tuple[Picture, dict[str, Any]]:
        sides = F.get_size(image)[::-1]
        width, height = (randint(min(self.low, side), min(self.high, side)) for side in sides)
        return _crop(image, target, width, height)


class ScaleJitter(nn.Module):
    """Large-scale jitter (Ghiasi et al. 2021, section 3): the image takes the size that ResizeShorter would give it;
    what it shows is larger than usual by a factor from `low` to `high`: a part of the image, or the image and around
    it FILL."""

    def __init__(self, sizes: list[int], max_size: int, low: float, high: float):
        super().__init__()
        self.resize, self.low, self.high = ResizeShorter(sizes, max_size), low, high

    def forward(self, image: Picture, target: dict[str, Any]) -> tuple[Picture, dict[str, Any]]:
        height, width = F.get_size(image)
        wanted = self.resize.result(width, height, self.resize.chosen())
        factor = uniform(self.low, self.high)
        if factor > 1:
            part = _crop(image, target, *(max(1, round(side / factor)) for side in (width, height)))
            return resize(*part, wanted)
        below, right = (side - max(1, round(side * factor)) for side in wanted)
        image, target = resize(image, target, (wanted[0] - below, wanted[1] - right))
        left, top = randint(0, right), randint(0, below)
        padding = [left, top, right - left, below - top]
        return F.pad(image, padding, fill=list(FILL)), target | {"boxes": F.pad(target["boxes"], padding)}


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


def train_transforms(options: DataOptions, fix_size: bool = False, used: Set[str] = EVERY,
                     extra: Callable | None = None) -> nn.Module:
    """Flips, then a resize to one of the scales, half of the time after a random crop, then color jitter.

    fix_size: all images get the same size. used: those of EVERY that are used, if the options ask for them. extra: what
    config key data_aug_extra names, applied after the resize. What needs further images is in datasets/mixing.py.
    """
    scales, max_size = scaled(options.data_aug_scales, options), scaled([options.data_aug_max_size], options)[0]
    changes: list[Callable] = [ToPixels(), v2.RandomHorizontalFlip()]
    changes += [v2.RandomVerticalFlip()] if options.data_aug_vertical_flip else []
    jitter = options.data_aug_scale_jitter if "scale_jitter" in used else 0
    scale_jitter = ScaleJitter(scales, max_size, *SCALES)
    added = [extra] if extra is not None and "extra" in used else []
    if fix_size:
        changes += [v2.RandomApply([scale_jitter], jitter)] if jitter else []
        changes += [*added, ResizeTo(max(scales), max_size)]
    else:
        usual = _usual_resize(options, scales, max_size, "crop" in used)
        changes += [v2.RandomChoice([scale_jitter, usual], [jitter, 1 - jitter]) if jitter else usual, *added]
    changes += _color_jitter(options) if "color" in used else []
    return v2.Compose([*changes, ToTensors()])


def _usual_resize(options: DataOptions, scales: list[int], max_size: int, crop: bool) -> nn.Module:
    shorter = ResizeShorter(scales, max_size)
    if not crop:
        return shorter
    # The resize before the crop is bounded too: a panorama would grow to tens of thousands of pixels.
    return v2.RandomChoice([shorter, v2.Compose([
        ResizeShorter(scaled(options.data_aug_scales2_resize, options), max_size),
        RandomSizeCrop(*scaled(options.data_aug_scales2_crop, options)), shorter])])


def val_transforms(options: DataOptions, fix_size: bool = False) -> nn.Module:
    """The largest scale times `eval_size_factor` (Touvron et al., "Fixing the train-test resolution discrepancy"),
    without randomness."""
    size, max_size = eval_limits(options)
    resize = ResizeTo(size, max_size) if fix_size else ResizeShorter([size], max_size)
    return v2.Compose([resize, ToTensors()])


def eval_limits(options: DataOptions) -> tuple[int, int]:
    """The shorter side in evaluation, and the maximum of the longer side, px."""
    largest = scaled([max(options.data_aug_scales), options.data_aug_max_size], options)
    size, max_size = (round(size * options.eval_size_factor) for size in largest)
    return size, max_size


def train_limits(options: DataOptions) -> tuple[int, int, int]:
    """The smallest and the largest shorter side in training, and the maximum of the longer side, px."""
    scales, max_size = scaled(options.data_aug_scales, options), scaled([options.data_aug_max_size], options)[0]
    return min(scales), max(scales), max_size


def _color_jitter(options: DataOptions) -> list[nn.Module]:
    """Jitter by data_aug_color. Not of the hue: on a CPU that takes longer than everything else in loading an image."""
    strength = options.data_aug_color
    return [v2.ColorJitter(strength, strength, strength)] if strength else []


def scaled(sizes: list[int], options: DataOptions) -> list[int]:
    """Sizes by the factor of data_aug_scale_overlap."""
    factor = options.data_aug_scale_overlap
    return [int(size * factor) for size in sizes] if factor else sizes


def _crop(image: Picture, target: dict[str, Any], width: int, height: int) -> tuple[Picture, dict[str, Any]]:
    """A region of width x height px, anywhere in the image, and what it shows of the boxes."""
    rows, columns = F.get_size(image)
    left, top = randint(0, columns - width), randint(0, rows - height)
    window = (top, left, height, width)
    boxes = F.crop(target["boxes"], *window)  # clips to the window
    sides = (boxes[:, 2:] - boxes[:, :2]).as_subclass(Tensor)
    target = target | {"boxes": boxes, "area": torch.minimum(target["area"], sides.prod(1))}
    return F.crop(image, *window), keep_boxes(target, (boxes[:, 2:] > boxes[:, :2]).all(1))


def resize(image: P, target: dict[str, Any], size: tuple[int, int]) -> tuple[P, dict[str, Any]]:
    """Image and target scaled to `size` (height, width)."""
    height, width = F.get_size(image)
    area = target["area"] * (size[0] * size[1] / (width * height))
    return F.resize(image, size), target | {"boxes": F.resize(target["boxes"], size), "area": area}


def randint(low: int, high: int) -> int:
    """Uniform integer from low to high, inclusive."""
    return int(torch.randint(low, high + 1, ()))


def uniform(low: float, high: float) -> float:
    return float(torch.empty(()).uniform_(low, high))
