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


def pairwise_giou(a: Tensor, b: Tensor, eps: float = 0.0) -> Tensor:
    """See `giou`, of xyxy boxes [..., N, 4] with [..., M, 4]: [..., N, M]."""
    return giou(a[..., :, None, :], b[..., None, :, :], eps)


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """See `iou`, of xyxy boxes [..., N, 4] with [..., M, 4]: [..., N, M]."""
    return iou(a[..., :, None, :], b[..., None, :, :])


def giou(a: Tensor, b: Tensor, eps: float = 0.0) -> Tensor:
    """Generalised IoU (Rezatofighi et al., 2019) of xyxy boxes [..., 4]: [...].

    eps is added to what is divided by, the areas of union and hull: without it, two empty boxes give NaN. DINO has 1e-6
    and DETR none, which small boxes feel: 2 x 2 px of an image of 800 x 800 have an area of 6e-6. torchvision's
    functions have another or none, and take no batch.
    """
    inter, union = _areas(a, b)
    hull = _area(torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:]))
    return inter / (union + eps) - (hull - union) / (hull + eps)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of xyxy boxes [..., 4]: [...]. That of two empty boxes is 0."""
    inter, union = _areas(a, b)
    return inter / union.clamp(min=torch.finfo(union.dtype).tiny)


def _areas(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Of the intersection and of the union."""
    inter = _area(torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:]))
    return inter, _area(a[..., :2], a[..., 2:]) + _area(b[..., :2], b[..., 2:]) - inter


def _area(low: Tensor, high: Tensor) -> Tensor:
    width, height = (high - low).clamp(min=0).unbind(-1)
    return width * height
