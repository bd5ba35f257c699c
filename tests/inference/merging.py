"""What inference.tiles.merged finds, by its definition: one box after the other, each compared with all objects."""
import torch
from torch import Tensor
from torchvision.ops import batched_nms

from inference.backends import in_order
from inference.tiles import (
    AGREEING_IOU,
    BORDER,
    COVERED,
    NMS_IOU,
    SAME_PLACE,
    Boxes,
    Found,
    Window,
    _area,
    _by_view,
    _intersection,
    _union,
)


def merged_one_by_one(parts: list[tuple[Window, Found]], size: tuple[int, int], limits: Tensor) -> Found:
    whole, spare, partial = _by_view(parts, size)
    objects = whole[batched_nms(whole.boxes, whole.scores, whole.labels, NMS_IOU)]
    for i in spare.scores.argsort(descending=True, stable=True).tolist():
        box = spare[torch.tensor([i])]
        rival = (objects.labels == box.labels) & (objects.scores >= limits[objects.labels])
        smaller = torch.minimum(_area(objects.boxes), _area(box.boxes))
        if not _confirms(objects, box) and not (
                rival & (_area(_intersection(objects.boxes, box.boxes)) >= SAME_PLACE * smaller)).any():
            objects = Boxes.joined([objects, box])
    for i in partial.scores.argsort(descending=True, stable=True).tolist():
        box = partial[torch.tensor([i])]
        if not _confirms(objects, box) and not _is_covered(objects, box, limits):
            objects = Boxes.joined([objects, box])
    objects = objects[objects.scores >= limits[objects.labels]]
    return in_order(objects.scores, objects.labels, objects.boxes)


def _confirms(objects: Boxes, box: Boxes) -> bool:
    """Whether a further box [1] shows one of the objects, seen by another part: both agree in the region that both
    parts show. That object then has the higher of both scores and, if it was cut too, the extent of both."""
    common = _intersection(objects.views, box.views)
    clipped, own = _intersection(objects.boxes, common), _intersection(common, box.boxes)
    shared = _area(_intersection(clipped, own))
    iou = shared / (_area(clipped) + _area(own) - shared).clamp(min=1e-6)
    iou = torch.where((objects.labels == box.labels) & (objects.views != box.views).any(1), iou, -1)
    if not len(iou) or iou.max() < AGREEING_IOU:
        return False
    best = int(iou.argmax())
    objects.scores[best] = torch.maximum(objects.scores[best], box.scores[0])
    if objects.pieced[best]:
        objects.boxes[best], objects.views[best] = (_union(mine[best], other[0]) for mine, other in (
            (objects.boxes, box.boxes), (objects.views, box.views)))
    return True


def _is_covered(objects: Boxes, box: Boxes, limits: Tensor) -> bool:
    """Whether a box [1] at an inner border is a part of an object that another part shows. A part's own boxes are
    different objects."""
    margin = max(2.0, BORDER * float((box.views[0, 2:] - box.views[0, :2]).max()))
    around = objects.boxes + box.boxes.new_tensor([-margin, -margin, margin, margin])
    within = _area(_intersection(around, box.boxes)) >= COVERED * _area(box.boxes)
    others = (objects.labels == box.labels) & (objects.views != box.views).any(1)
    return bool((within & others & (objects.scores >= limits[objects.labels])).any())
