"""What makes a box usable, where it is cut, and what boxes seem to mean: for arrays of n boxes and their images.

Boxes [n, 4] are (x, y, width, height) in pixels, sizes [n, 2] the (width, height) of the image of each; float64.
"""
import numpy as np
import torch
from torch import Tensor

ROUNDING = 0.1  # px by which a box may extend beyond its image unnoticed
Array = np.ndarray


def corners(boxes: Array, sizes: Array) -> Tensor:
    """The boxes clipped to their images, as xyxy px [n, 4] in the precision of the training, float32."""
    xywh, limits = _single(boxes), _single(sizes)
    both = torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1)
    return torch.minimum(both.clamp(min=0), limits.repeat(1, 2))


def faults(boxes: Array, sizes: Array) -> dict[str, Array]:
    """Per fault that makes a box useless, which of them have it: [n] each; a box has one at most."""
    single, clipped = _single(boxes).numpy(), corners(boxes, sizes).numpy()
    not_finite = ~np.isfinite(single).all(1)
    empty = ~not_finite & ~(single[:, 2:] > 0).all(1)
    outside = ~not_finite & ~empty & ~(clipped[:, 2:] > clipped[:, :2]).all(1)
    return {"not_finite": not_finite, "empty": empty, "outside": outside}


def reaching_over(boxes: Array, sizes: Array, tolerance: float = ROUNDING) -> Array:
    """Which boxes [n] extend beyond their image by more than `tolerance` px."""
    return (boxes[:, :2] < -tolerance).any(1) | (boxes[:, :2] + boxes[:, 2:] > sizes + tolerance).any(1)


def cut(boxes: Array, areas: Array, sizes: Array) -> tuple[Array, Array]:
    """Usable boxes and their areas [n], cut at the border of their image; an area is at most that of its box then.
    What needs no cut stays as it is."""
    over = reaching_over(boxes, sizes, tolerance=0)
    start, sides = boxes[:, :2], boxes[:, 2:]
    begin = np.maximum(start, 0)
    # Differences of corners would round the sides of boxes that need no cut.
    left = np.where(start + sides > sizes, sizes - begin, sides - (begin - start))
    whole = np.concatenate([begin, left], 1)
    return (np.where(over[:, None], whole, boxes), np.where(over, np.minimum(areas, left.prod(1)), areas))


def likely_areas(areas: Array, boxes: Array, stated: Array) -> Array:
    """Which areas [n] are those of what is in the boxes: above 0, not larger than the box, and not one number for all
    where a box is larger. stated [n]: which of the areas count."""
    own = boxes[:, 2] * boxes[:, 3]
    likely = (areas > 0) & (areas <= 1.1 * own + 1)
    all_stated = areas[stated]
    if len(all_stated) > 1 and (all_stated == all_stated[0]).all():
        likely &= own <= 1.1 * areas + 1
    return likely


def doubt(boxes: Array, sizes: Array) -> str | None:
    """What the boxes seem to be if not [x, y, width, height] in pixels; None if there is no reason to think so."""
    finite = np.isfinite(boxes).all(1)
    boxes, sizes = boxes[finite], sizes[finite]
    if len(boxes) < 3:  # anything may be a coincidence
        return None
    start, end, seems = boxes[:, :2], boxes[:, 2:], None
    beyond = (start + end > sizes + ROUNDING).any(1)

    def nearly_all(*conditions: Array) -> bool:
        return bool(np.all(conditions, (0, 2)).mean() >= 0.95)

    if nearly_all(start <= 1, end <= 1) and sizes.min() > 10:
        seems = "parts of the image (0 to 1)"
    elif nearly_all(start + end <= 100) and sizes.min() >= 300 and len(boxes) >= 20 and (start + end).max() > 80:
        seems = "per cent of the image (0 to 100)"
    elif beyond.mean() >= 0.1:
        if nearly_all(end > start, end <= sizes + ROUNDING):
            seems = "two corners [x1, y1, x2, y2]"
        elif nearly_all(start - end / 2 >= -ROUNDING, start + end / 2 <= sizes + ROUNDING):
            seems = "a centre and a size [cx, cy, width, height]"
    return seems and (f"the boxes, such as {boxes[0].round(3).tolist()}, look like {seems}: COCO's bbox is "
                      "[x, y, width, height] in pixels, where x, y is the upper left corner")


def _single(values: Array) -> Tensor:
    """In the precision of the training; what is too large for it is infinite."""
    return torch.from_numpy(np.ascontiguousarray(values)).float()
