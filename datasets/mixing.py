"""Samples of several images: mosaic, mixup and copy-paste.

Images are PIL's, targets those of datasets/transforms.py. All randomness is torch's.
"""
from collections.abc import Sequence, Set
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors

from datasets.shapes import mosaic_size
from datasets.transforms import FILL, PER_BOX, keep_boxes, randint, uniform
from util.options import DataOptions

CENTRE = (0.4, 0.6)  # where the tiles of a mosaic meet, as fractions of its width and height
BLEND = (0.45, 0.55)  # weight of the first image in a mixup
PASTED = 10  # objects of another image that are chosen at most
PLACES = 10  # that are tried for each
COVERED = 0.1  # part of an object's box that all pasted rectangles may cover
VISIBLE = 0.5  # part of a neighbour's box that a pasted rectangle must show for the neighbour to count as an object

Target = dict[str, Any]
Picture = tuple[Image.Image, Target]
Window = tuple[int, int, int, int]


class Reader(Protocol):
    """Reads images of a data set."""

    def __len__(self) -> int: ...

    def size(self, index: int) -> tuple[int, int]:
        """(width, height) of an image, px."""

    def __call__(self, index: int, within: tuple[int, int] | None = None) -> Picture:
        """An image and its target, scaled into (width, height) if `within` is given."""


class Mixing:
    """Mosaic, copy-paste and mixup, each with the probability of its config key."""

    def __init__(self, options: DataOptions):
        self.options = options
        self.parts = {"mosaic": options.data_aug_mosaic, "copy_paste": options.data_aug_copy_paste,
                      "mixup": options.data_aug_mixup}

    def __call__(self, read: Reader, index: int, used: Set[str]) -> Picture:
        """The image at `index`, with others as far as the names in `used` allow it. It comes first: `read` is asked
        for it before any other."""
        drawn = {name for name, part in self.parts.items() if part and name in used and uniform(0, 1) < part}
        if "mosaic" in drawn:
            image, target = mosaic(read, [index, *(_partner(read) for _ in range(3))],
                                   mosaic_size(self.options, read.size(index)))
        else:
            image, target = read(index)
        for name, mix in (("copy_paste", copy_paste), ("mixup", mixup)):
            if name in drawn:
                image, target = mix((image, target), read(_partner(read), within=image.size))
        return image, target

    def most_targets(self, most_boxes: int) -> int:
        """How many targets a sample can have if no image has more than `most_boxes`."""
        images = 4 if self.parts["mosaic"] else 1
        return (images + sum(bool(self.parts[name]) for name in ("copy_paste", "mixup"))) * most_boxes


def mosaic(read: Reader, indices: Sequence[int], size: tuple[int, int]) -> Picture:
    """Four images around a point near the centre of a canvas of `size` (width, height), each whole and as large as its
    quarter allows, on FILL (YOLOv4, Bochkovskiy et al. 2020, section 3.3; there the images are cut)."""
    (width, height), (x, y) = size, (round(side * uniform(*CENTRE)) for side in size)
    canvas, targets = Image.new("RGB", size, FILL), []
    quarters = ((x, y), (width - x, y), (x, height - y), (width - x, height - y))
    for number, (index, quarter) in enumerate(zip(indices, quarters)):
        image, target = read(index, within=quarter)
        left, top = x if number % 2 else x - image.width, y if number // 2 else y - image.height
        canvas.paste(image, (left, top))
        targets.append(_moved(target, left, top))
    return canvas, joined(targets, size)


def mixup(picture: Picture, other: Picture) -> Picture:
    """Both images at once, about half of each (mixup, Zhang et al. 2018; for boxes as in YOLOX, Ge et al. 2021). The
    other one is not larger, and lies anywhere; all boxes count fully."""
    (image, target), (second, its) = picture, other
    left, top = (randint(0, most - side) for most, side in zip(image.size, second.size))
    below = image.crop((left, top, left + second.width, top + second.height))
    blended = image.copy()
    blended.paste(Image.blend(second, below, uniform(*BLEND)), (left, top))
    return blended, joined([target, _moved(its, left, top)], image.size)


def copy_paste(picture: Picture, other: Picture) -> Picture:
    """The image with some objects of the other one, which is not larger: their boxes as rectangles, each anywhere that
    it hides no object (COVERED). After Ghiasi et al. 2021, who paste the objects' outlines.

    What else a rectangle shows comes with it, if that is enough of an object (VISIBLE). No object is pasted twice.
    """
    (image, target), (second, its) = picture, other
    boxes = _plain(its)
    pasted, targets = image.copy(), [target]
    hidden, left = torch.zeros(len(target["boxes"])), torch.ones(len(boxes), dtype=torch.bool)
    for number in torch.randperm(len(boxes))[:randint(1, PASTED)].tolist():
        window = _whole(boxes[number], second.size)
        shown, part = _part(its, window)
        if not left[shown].all():
            continue
        present = torch.cat([_plain(one) for one in targets])
        place = _place(window[2] - window[0], window[3] - window[1], image.size, present, hidden)
        if place is None:
            continue
        corner, covered = place
        pasted.paste(second.crop(window), corner)
        targets.append(_moved(part, *corner))
        hidden, left[shown] = torch.cat([hidden + covered, torch.zeros(len(shown))]), False
    return pasted, joined(targets, image.size)


def joined(targets: Sequence[Target], size: tuple[int, int]) -> Target:
    """The boxes of several targets in one, in an image of `size` (width, height)."""
    columns = {name: torch.cat([target[name].as_subclass(Tensor) for target in targets]) for name in PER_BOX}
    boxes = tv_tensors.BoundingBoxes(columns["boxes"], format="XYXY", canvas_size=size[::-1])
    return columns | {"boxes": boxes}


def _partner(read: Reader) -> int:
    return randint(0, len(read) - 1)


def _plain(target: Target) -> Tensor:
    return target["boxes"].as_subclass(Tensor)


def _moved(target: Target, x: int, y: int) -> Target:
    return target | {"boxes": _plain(target) + torch.tensor([x, y, x, y])}


def _whole(box: Tensor, size: tuple[int, int]) -> Window:
    """The pixels (left, top, right, bottom) that a box touches in an image of `size`."""
    left, top = box[:2].floor().int().tolist()
    right, bottom = torch.minimum(box[2:].ceil(), torch.tensor(size)).int().tolist()
    return min(left, right - 1), min(top, bottom - 1), right, bottom


def _part(target: Target, window: Window) -> tuple[Tensor, Target]:
    """Which boxes a window (left, top, right, bottom) shows at least VISIBLE of, and their target in the window."""
    boxes, limits = _plain(target), torch.tensor(window)
    cut = torch.maximum(torch.minimum(boxes, limits[2:].repeat(2)), limits[:2].repeat(2))
    sides = cut[:, 2:] - cut[:, :2]
    shown = (sides.prod(1) >= VISIBLE * (boxes[:, 2:] - boxes[:, :2]).prod(1)) & (sides > 0).all(1)
    part = target | {"boxes": tv_tensors.wrap(cut, like=target["boxes"]),
                     "area": torch.minimum(target["area"], sides.prod(1))}
    return shown.nonzero()[:, 0], _moved(keep_boxes(part, shown), -window[0], -window[1])


def _place(width: int, height: int, size: tuple[int, int], boxes: Tensor, hidden: Tensor
           ) -> tuple[tuple[int, int], Tensor] | None:
    """The corner of a rectangle in an image of `size`, and which part of each box [n, 4] it covers beside what is
    hidden [n] already; None if there is no place among PLACES."""
    corners = torch.stack([torch.randint(most - side + 1, (PLACES,)) for most, side in zip(size, (width, height))], 1)
    ends = corners + torch.tensor([width, height])
    overlap = torch.minimum(ends[:, None], boxes[:, 2:]) - torch.maximum(corners[:, None], boxes[:, :2])
    covered = overlap.clamp(min=0).prod(2) / (boxes[:, 2:] - boxes[:, :2]).prod(1)
    free = ((covered + hidden) <= COVERED).all(1).nonzero()[:, 0]
    if not len(free):
        return None
    chosen = int(free[0])
    x, y = corners[chosen].tolist()
    return (x, y), covered[chosen]
