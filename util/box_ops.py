"""Boxes are cxcywh in [0, 1] inside the models and xyxy in pixels outside; torchvision.ops does the rest."""
import torch
import torch.nn.functional as F
from torch import Tensor


def inverse_sigmoid(x: Tensor, eps: float = 1e-3) -> Tensor:
    """Logit of x in [0, 1], kept finite by clamping (eps is 1e-3 in DINO, 1e-5 in Deformable DETR)."""
    return torch.log(x.clamp(eps, 1.0) / (1 - x).clamp(eps, 1.0))


def apply_box_delta(reference: Tensor, delta: Tensor, eps: float) -> Tensor:
    """Logits of boxes [..., 4]: delta [..., 4], a head's output, plus the inverse sigmoid of the reference boxes
    [..., 4] or points [..., 2]."""
    logits = inverse_sigmoid(reference, eps)
    missing = delta.shape[-1] - logits.shape[-1]
    return delta + (F.pad(logits, (0, missing)) if missing else logits)


def corners(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """The upper left and the lower right corners [..., 2] of boxes [..., 4]."""
    centre, size = boxes.chunk(2, -1)
    return centre.sub(size, alpha=0.5), centre.add(size, alpha=0.5)


def pairwise_giou(a: Tensor, b: Tensor, eps: float = 0.0) -> Tensor:
    """See `giou`, of boxes [..., N, 4] with [..., M, 4]: [..., N, M]."""
    return giou(a[..., :, None, :], b[..., None, :, :], eps)


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """See `iou`, of boxes [..., N, 4] with [..., M, 4]: [..., N, M]."""
    return iou(a[..., :, None, :], b[..., None, :, :])


def giou(a: Tensor, b: Tensor, eps: float = 0.0) -> Tensor:
    """Generalised IoU (Rezatofighi et al., 2019) of boxes [..., 4], whose sides are not negative: [...].

    eps is added to what is divided by, the areas of union and hull: without it, two empty boxes give NaN. DINO has 1e-6
    and DETR none, which small boxes feel: 2 x 2 px of an image of 800 x 800 have an area of 6e-6. torchvision's
    functions have another or none, and take no batch.
    """
    return _giou(*_areas(a, b), eps)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of boxes [..., 4]: [...]. That of two empty boxes is 0."""
    inter, union, _ = _areas(a, b)
    return _iou(inter, union)


def giou_and_iou(a: Tensor, b: Tensor, eps: float = 0.0) -> tuple[Tensor, Tensor]:
    """Both, the IoU without gradient."""
    inter, union, hull = _areas(a, b)
    return _giou(inter, union, hull, eps), _iou(inter.detach(), union.detach())


def _giou(inter: Tensor, union: Tensor, hull: Tensor, eps: float) -> Tensor:
    return inter / (union + eps) - (hull - union) / (hull + eps)


def _iou(inter: Tensor, union: Tensor) -> Tensor:
    return inter / union.clamp(min=torch.finfo(union.dtype).tiny)


def _areas(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of the intersection, the union and the hull, the smallest box around both."""
    (low_a, high_a), (low_b, high_b) = corners(a), corners(b)
    size_a, size_b = a[..., 2:], b[..., 2:]
    shared = torch.minimum(high_a, high_b) - torch.maximum(low_a, low_b)  # negative between boxes that are apart
    inter = _area(shared.clamp(min=0))
    return inter, _area(size_a) + _area(size_b) - inter, _area(size_a + size_b - shared)


def _area(size: Tensor) -> Tensor:
    width, height = size.unbind(-1)
    return width * height
