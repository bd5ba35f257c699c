"""Large images in overlapping parts, and one set of detections from those of the parts.

Objects are judged where they are seen whole: those that fit into a tile by the tiles, larger ones by the whole image.
n detections of all parts of an image.
"""
import torch
from torch import Tensor
from torchvision.ops import batched_nms

from inference.backends import in_order
from inference.results import joined
from util.errors import UserError

NMS_IOU = 0.6  # of two boxes of one object from different parts
COVERED = 0.7  # of the area of a box at an inner border: so much of it within another is a part of that object
AGREEING_IOU = 0.5  # of two boxes at inner borders, in the region that both parts see
SAME_PLACE = 0.5  # of the smaller of two boxes: so much in common, and they are about one object
BORDER = 0.01  # of the side of a part: a box that ends so close to an inner border may go on behind it
Window = tuple[int, int, int, int]  # left, top, right, bottom, px
Found = dict[str, Tensor]


def windows(size: tuple[int, int], tiles: tuple[int, int], overlap: float) -> list[Window]:
    """The tiles of an image of `size` (width, height): all of tiles (height, width) px, or less where the image is
    smaller, evenly spaced, neighbours with at least `overlap` of a side in common. In front of several, the whole
    image."""
    columns, rows = (_starts(side, min(tile, side), overlap) for side, tile in zip(size, tiles[::-1]))
    height, width = (min(tile, side) for tile, side in zip(tiles, size[::-1]))
    parts = [(left, top, left + width, top + height) for top in rows for left in columns]
    return parts if len(parts) == 1 else [(0, 0, *size), *parts]


def checked_tiles(tiles: int | tuple[int, int], overlap: float) -> tuple[int, int]:
    """(height, width) in px. Raises UserError for what is none, and for an overlap that is not from 0 to 0.9."""
    sides = (tiles, tiles) if isinstance(tiles, int) else tuple(tiles)
    if len(sides) != 2 or not all(isinstance(s, int) and not isinstance(s, bool) and s >= 16 for s in sides):
        raise UserError(f"tiles {tiles!r} must be a side in px, or (height, width), of at least 16 px")
    if not 0 <= overlap <= 0.9:
        raise UserError(f"overlap {overlap} must be from 0 to 0.9 of a tile's side")
    return sides[0], sides[1]


def merged(parts: list[tuple[Window, Found]], size: tuple[int, int]) -> Found:
    """One set of detections from those of each part, whose boxes are in pixels of the part. The image's, in descending
    order of score, boxes in its pixels."""
    if len(parts) == 1:
        return parts[0][1]
    whole_image = (0, 0, *size)
    tiles = [window for window, _ in parts if window != whole_image]
    moved, cut, spare, views = [], [], [], []
    for window, found in parts:
        boxes = found["boxes"] + found["boxes"].new_tensor([*window[:2], *window[:2]])
        moved.append({**found, "boxes": boxes})
        cut.append(_at_inner_border(boxes, window, size))
        fitting = [_fits(boxes, tile, size) for tile in tiles] if window == whole_image else []
        spare.append(torch.stack(fitting).any(0) if fitting else torch.zeros(len(boxes), dtype=torch.bool))
        views.append(boxes.new_tensor(window)[None].expand(len(boxes), 4))
    found, second = joined(moved), torch.cat(spare)
    first = {name: value[~second] for name, value in found.items()}
    kept = _resolved(first, torch.cat(cut)[~second], torch.cat(views)[~second])
    # A tile sees better what fits into it; what the whole image shows counts where tiles found nothing of its class.
    for box, score, label in zip(*(found[name][second] for name in ("boxes", "scores", "labels"))):
        rivals = kept["boxes"][kept["labels"] == label]
        shared = _area(_intersection(rivals, box))
        if not (shared >= SAME_PLACE * torch.minimum(_area(rivals), _area(box))).any():
            kept = joined([kept, {"boxes": box[None], "scores": score[None], "labels": label[None]}])
    return in_order(kept["scores"], kept["labels"], kept["boxes"])


def _starts(side: int, tile: int, overlap: float) -> list[int]:
    if tile >= side:
        return [0]
    step = max(1, int(tile * (1 - overlap)))
    count = 1 + -(-(side - tile) // step)
    return [round(i * (side - tile) / (count - 1)) for i in range(count)]


def _inner_borders(window: Window, size: tuple[int, int]) -> list[tuple[int, float]]:
    """(which coordinate of a box, how close it must come to the border, px) of the borders within the image."""
    outer = (0, 0, *size)
    return [(side, max(2, BORDER * (window[side % 2 + 2] - window[side % 2]))) for side in range(4)
            if window[side] != outer[side]]


def _at_inner_border(boxes: Tensor, window: Window, size: tuple[int, int]) -> Tensor:
    touching = torch.zeros(len(boxes), dtype=torch.bool)
    for side, margin in _inner_borders(window, size):
        touching |= boxes[:, side] >= window[side] - margin if side >= 2 else boxes[:, side] <= window[side] + margin
    return touching


def _fits(boxes: Tensor, window: Window, size: tuple[int, int]) -> Tensor:
    """Whether a box lies in a part without touching its inner borders. What it is beyond the image does not count."""
    left, top, right, bottom = boxes.unbind(1)
    width, height = size
    inside = ((left.clamp(min=0) >= window[0]) & (top.clamp(min=0) >= window[1])
              & (right.clamp(max=width) <= window[2]) & (bottom.clamp(max=height) <= window[3]))
    return inside & ~_at_inner_border(boxes, window, size)


def _resolved(found: Found, cut: Tensor, views: Tensor) -> Found:
    """found [n], whether each ends at an inner border [n], and the part that saw it [n, 4]."""
    # Boxes that are whole come before those that may be cut, whatever their scores.
    order = batched_nms(found["boxes"], found["scores"] + (~cut).to(found["scores"]) * 2, found["labels"], NMS_IOU)
    whole, partial = order[~cut[order]], order[cut[order]]
    boxes, scores, labels = (found[name][whole] for name in ("boxes", "scores", "labels"))
    seen, pieced = views[whole], torch.zeros(len(whole), dtype=torch.bool)  # pieced: from boxes that may be cut
    for i in partial.tolist():  # in descending order of score
        box, view, score, label = (x[i] for x in (found["boxes"], views, found["scores"], found["labels"]))
        others = (labels == label) & (seen != view).any(1)  # a part's own boxes are different objects
        margin = max(2.0, BORDER * float((view[2:] - view[:2]).max()))
        shared = _area(_intersection(boxes + boxes.new_tensor([-margin, -margin, margin, margin]), box))
        if bool((others & (shared >= COVERED * _area(box))).any()):
            continue
        agreement = torch.where(others & pieced, _agreement(boxes, seen, box, view), -1)
        if len(agreement) and agreement.max() >= AGREEING_IOU:
            best = int(agreement.argmax())
            boxes[best], seen[best] = _union(boxes[best], box), _union(seen[best], view)
            continue
        boxes, seen = torch.cat([boxes, box[None]]), torch.cat([seen, view[None]])
        scores, labels = torch.cat([scores, score[None]]), torch.cat([labels, label[None]])
        pieced = torch.cat([pieced, torch.ones(1, dtype=torch.bool)])
    return {"scores": scores, "labels": labels, "boxes": boxes}


def _agreement(boxes: Tensor, seen: Tensor, box: Tensor, view: Tensor) -> Tensor:
    """IoU [n] of boxes, which the parts `seen` show, with a box of the part `view`, in the region that both show."""
    common = _intersection(seen, view)
    clipped, own = _intersection(boxes, common), _intersection(common, box)
    shared = _area(_intersection(clipped, own))
    return shared / (_area(clipped) + _area(own) - shared).clamp(min=1e-6)


def _intersection(a: Tensor, b: Tensor) -> Tensor:
    return torch.cat([torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])], -1)


def _union(a: Tensor, b: Tensor) -> Tensor:
    return torch.cat([torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:])], -1)


def _area(boxes: Tensor) -> Tensor:
    """0 where there is none."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)
