"""Large images in overlapping parts, and one set of detections from those of the parts.

An object is judged where it is seen whole: by a tile that it fits into, else by the whole image. n boxes.
"""
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from inference.backends import in_order
from util.errors import UserError

NMS_IOU = 0.6  # of two whole boxes of one object
AGREEING_IOU = 0.5  # of two boxes of one object, in the region that the parts of both show
COVERED = 0.7  # so much of a box within another one: it is a part of that object
SAME_PLACE = 0.5  # of the smaller of two boxes, for one from the whole image: what it shows is found already
BORDER = 0.01  # of the side of a part: a box that ends so close to an inner border may go on behind it
MOST_TILES = 1000  # of an image: searching more takes long, and nobody wants as many
SUPPORT = 0.5  # of the least score: from here on, a box can confirm one of another part
Window = tuple[int, int, int, int]  # left, top, right, bottom, px
Found = dict[str, Tensor]
Pair = tuple[float, bool]  # of an object and a further box: how far they agree, and whether that object hides the box
OUTWARDS = torch.tensor([-1.0, -1, 1, 1])
BLOCK = 256  # boxes that are compared with all objects at once


def checked_tiles(tiles: int | tuple[int, int], overlap: float) -> tuple[int, int]:
    """(height, width) in px. Raises UserError for what is none, and for an overlap that is not from 0 to 0.9."""
    sides = tuple(tiles) if isinstance(tiles, (tuple, list)) else (tiles, tiles)
    if len(sides) != 2 or not all(isinstance(s, int) and not isinstance(s, bool) and s >= 16 for s in sides):
        raise UserError(f"tiles {tiles!r} must be a side in px, or (height, width), of at least 16 px")
    if isinstance(overlap, bool) or not isinstance(overlap, (int, float)) or not 0 <= overlap <= 0.9:
        raise UserError(f"overlap {overlap!r} must be from 0 to 0.9 of a tile's side")
    return sides[0], sides[1]


def windows(size: tuple[int, int], tiles: tuple[int, int], overlap: float) -> list[Window]:
    """The tiles of an image of `size` (width, height): all of tiles (height, width) px, or less where the image is
    smaller, evenly spaced, neighbours with at least `overlap` of a side in common. In front of several, the whole
    image. Raises UserError for more than MOST_TILES."""
    columns, rows = (_starts(side, min(tile, side), overlap) for side, tile in zip(size, tiles[::-1]))
    height, width = (min(tile, side) for tile, side in zip(tiles, size[::-1]))
    count = len(rows) * len(columns)
    if count > MOST_TILES:
        raise UserError(f"an image of {size[0]}x{size[1]} px has {count:,} tiles of {width}x{height} px with an "
                        f"overlap of {overlap}: choose larger ones, or less overlap, for at most {MOST_TILES:,}")
    parts = [(left, top, left + width, top + height) for top in rows for left in columns]
    return parts if len(parts) == 1 else [(0, 0, *size), *parts]


def _starts(side: int, tile: int, overlap: float) -> list[int]:
    if tile >= side:
        return [0]
    step = max(1, int(tile * (1 - overlap)))
    count = 1 + -(-(side - tile) // step)
    return [round(i * (side - tile) / (count - 1)) for i in range(count)]


@dataclass
class Boxes:
    """boxes [n, 4] xyxy px of the image, scores [n], labels [n]; views [n, 4]: the part that showed each; pieced [n]:
    whether it may be cut by an inner border of that."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    views: Tensor
    pieced: Tensor

    def __getitem__(self, index: Tensor | list[int]) -> "Boxes":
        return Boxes(*(value[index] for value in vars(self).values()))

    @classmethod
    def joined(cls, several: Iterable["Boxes"]) -> "Boxes":
        return cls(*map(torch.cat, zip(*(vars(boxes).values() for boxes in several))))


def merged(parts: list[tuple[Window, Found]], size: tuple[int, int], limits: Tensor) -> Found:
    """One set of detections, in descending order of score and in pixels of the image, from those of each part, whose
    boxes are in pixels of the part.

    limits [num_classes]: the least score of a detection. The parts' may be lower, down to SUPPORT of it: the whole box
    of an object counts as much as the surest view of it.
    """
    whole, spare, partial = _by_view(parts, size)
    whole = whole[batched_nms(whole.boxes, whole.scores, whole.labels, NMS_IOU)]
    spare, partial = (boxes[boxes.scores.argsort(descending=True, stable=True)] for boxes in (spare, partial))
    found = Boxes.joined([whole, spare, partial])
    objects = found[_objects(found, len(whole.scores), limits[found.labels].tolist())]
    objects = objects[objects.scores >= limits[objects.labels]]
    return in_order(objects.scores, objects.labels, objects.boxes)


def _by_view(parts: list[tuple[Window, Found]], size: tuple[int, int]) -> tuple[Boxes, Boxes, Boxes]:
    """The boxes of objects that are seen whole, of those that the whole image shows although they fit into a tile,
    which sees them better, and of those that an inner border may cut."""
    whole_image = (0, 0, *size)
    tiles = [window for window, _ in parts if window != whole_image]
    found, spare = [], []
    for window, part in parts:
        boxes = part["boxes"] + part["boxes"].new_tensor([*window[:2], *window[:2]])
        view = boxes.new_tensor(window)[None].expand(len(boxes), 4)
        found.append(Boxes(boxes, part["scores"], part["labels"], view, _at_inner_border(boxes, window, size)))
        fitting = torch.zeros(len(boxes), dtype=torch.bool)
        for tile in tiles if window == whole_image else []:
            fitting |= _fits(boxes, tile, size)
        spare.append(fitting)
    everything, second = Boxes.joined(found), torch.cat(spare)
    shown = _area(everything.boxes) > 0  # a box without area would lie within any other, wherever that is
    pieced = everything.pieced
    return everything[shown & ~second & ~pieced], everything[shown & second], everything[shown & pieced]


def _at_inner_border(boxes: Tensor, window: Window, size: tuple[int, int]) -> Tensor:
    touching, outer = torch.zeros(len(boxes), dtype=torch.bool), (0, 0, *size)
    for side in (side for side in range(4) if window[side] != outer[side]):
        margin = max(2, BORDER * (window[side % 2 + 2] - window[side % 2]))
        touching |= boxes[:, side] >= window[side] - margin if side >= 2 else boxes[:, side] <= window[side] + margin
    return touching


def _fits(boxes: Tensor, window: Window, size: tuple[int, int]) -> Tensor:
    """Whether a box lies in a part without touching its inner borders. What it is beyond the image does not count."""
    start, end = boxes[:, :2].clamp(min=0), torch.minimum(boxes[:, 2:], boxes.new_tensor(size))
    inside = (start >= boxes.new_tensor(window[:2])).all(1) & (end <= boxes.new_tensor(window[2:])).all(1)
    return inside & ~_at_inner_border(boxes, window, size)


def _objects(found: Boxes, certain: int, limits: list[float]) -> list[int]:
    """The places of the boxes that are an object of their own. The first `certain` are. Each further one, in this
    order, is one unless it agrees with an object, which then has the higher of both scores and, if it was cut too, the
    extent of both; or it is a part of an object, or in its place, whose score reaches its limit.
    """
    scores, cut = found.scores.tolist(), found.pieced.tolist()
    chosen = [place < certain for place in range(len(scores))]
    for start in range(certain, len(scores), BLOCK):
        end = min(start + BLOCK, len(scores))
        earlier = [place for place in range(end) if chosen[place] or place >= start]
        pairs = _pairs(found, torch.tensor(earlier), torch.arange(start, end))
        for place in range(start, end):
            near = {other: pair for other, pair in sorted(pairs[place].items()) if chosen[other]}
            best = max(near, key=lambda other: near[other][0], default=None)
            if best is None or near[best][0] < AGREEING_IOU:
                chosen[place] = not any(hides and scores[other] >= limits[other] for other, (_, hides) in near.items())
                continue
            scores[best] = max(scores[best], scores[place])
            if cut[best]:
                _extend(found, best, place)
                for other, pair in _pairs(found, torch.tensor([best]), torch.arange(place + 1, end)).items():
                    pairs[other].pop(best, None)
                    pairs[other].update(pair)
    found.scores = found.scores.new_tensor(scores)
    return [place for place, is_object in enumerate(chosen) if is_object]


def _extend(found: Boxes, place: int, other: int) -> None:
    """One box, and what its part shows, over another one."""
    for values in (found.boxes, found.views):
        values[place] = _union(values[place], values[other])


def _pairs(found: Boxes, earlier: Tensor, later: Tensor) -> dict[int, dict[int, Pair]]:
    """Of each of the places `later`, those of `earlier` that come before it and agree with it or hide it."""
    pairs: dict[int, dict[int, Pair]] = {place: {} for place in later.tolist()}
    row, column = _touching(found, earlier, later)
    first, second = earlier[column], later[row]
    first, second = first[first < second], second[first < second]
    if not len(first):
        return pairs
    agreement, hides = _agreement(found[first], found[second]), _hides(found[first], found[second])
    related = (agreement >= AGREEING_IOU) | hides
    for place, other, *pair in zip(*(values[related].tolist() for values in (second, first, agreement, hides))):
        pairs[place][other] = (pair[0], pair[1])
    return pairs


def _touching(found: Boxes, earlier: Tensor, later: Tensor) -> tuple[Tensor, ...]:
    """The pairs (place in later, place in earlier) of one class whose boxes are not further apart than a margin."""
    one, other = found.boxes[earlier].T, (_around(found.boxes[later], found.views[later]) + OUTWARDS).T[..., None]
    near = found.labels[earlier] == found.labels[later][:, None]
    near &= one[0] <= other[2]
    near &= one[1] <= other[3]
    near &= one[2] >= other[0]
    near &= one[3] >= other[1]
    return near.nonzero(as_tuple=True)


def _agreement(objects: Boxes, boxes: Boxes) -> Tensor:
    """IoU [n] of objects and boxes that other parts show, in the region that both parts show. -1 for the same part."""
    common = _intersection(objects.views, boxes.views)
    clipped, own = _intersection(objects.boxes, common), _intersection(common, boxes.boxes)
    shared = _area(_intersection(clipped, own))
    iou = shared / (_area(clipped) + _area(own) - shared).clamp(min=1e-6)
    return torch.where((objects.views != boxes.views).any(1), iou, -1)


def _hides(objects: Boxes, boxes: Boxes) -> Tensor:
    """Whether [n] a box at an inner border is a part of an object that another part shows (a part's own boxes are
    different objects), and whether a box from the whole image is in the place of an object."""
    area, around = _area(boxes.boxes), _around(objects.boxes, boxes.views)
    within = _area(_intersection(around, boxes.boxes)) >= COVERED * area
    smaller = torch.minimum(_area(objects.boxes), area)
    in_place = _area(_intersection(objects.boxes, boxes.boxes)) >= SAME_PLACE * smaller
    return torch.where(boxes.pieced, within & (objects.views != boxes.views).any(1), in_place)


def _around(boxes: Tensor, views: Tensor) -> Tensor:
    """Boxes and the margin at the border of these views."""
    margin = (BORDER * (views[:, 2:] - views[:, :2]).amax(1).double()).clamp(min=2).to(boxes.dtype)
    return boxes + margin[:, None] * OUTWARDS


def _intersection(a: Tensor, b: Tensor) -> Tensor:
    return torch.cat([torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])], -1)


def _union(a: Tensor, b: Tensor) -> Tensor:
    return torch.cat([torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:])], -1)


def _area(boxes: Tensor) -> Tensor:
    """0 where there is none."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)
