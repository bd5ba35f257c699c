"""Boxes are cxcywh in [0, 1] inside the models and xyxy in pixels outside; torchvision.ops does the rest."""
import torch
from torch import Tensor


def inverse_sigmoid(x: Tensor, eps: float = 1e-3) -> Tensor:
    """Logit of x in [0, 1], kept finite by clamping (eps is 1e-3 in DINO, 1e-5 in Deformable DETR)."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))
