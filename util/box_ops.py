"""Boxes are cxcywh in [0, 1] inside the models and xyxy in pixels outside; torchvision.ops does the rest."""
import torch
import torch.nn.functional as F
from torch import Tensor


def inverse_sigmoid(x: Tensor, eps: float = 1e-3) -> Tensor:
    """Logit of x in [0, 1], kept finite by clamping (eps is 1e-3 in DINO, 1e-5 in Deformable DETR)."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def moved(reference: Tensor, delta: Tensor, eps: float) -> Tensor:
    """Logits of boxes [..., 4]: delta, a head's output, away from reference boxes [..., 4] or points [..., 2]."""
    logits = inverse_sigmoid(reference, eps)
    return delta + F.pad(logits, (0, delta.shape[-1] - logits.shape[-1]))
