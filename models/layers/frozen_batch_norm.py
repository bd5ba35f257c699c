"""Batch norm with fixed statistics and weights, as DETR trains its backbones: small batches cannot estimate them."""
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn


def _normalize(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    return F.batch_norm(x, mean, var, weight, bias, eps=eps)


class _Normalize(torch.autograd.Function):
    """_normalize whose backward pass needs no map. PyTorch's own keeps each norm's input, in a training of Lite-DINO
    R50 a sixth of the memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(var, weight)
        ctx.eps = eps
        return _normalize(x, mean, var, weight, bias, eps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        var, weight = ctx.saved_tensors
        return _normalize(grad, torch.zeros_like(var), var, weight, None, ctx.eps), None, None, None, None, None


class FrozenBatchNorm2d(torchvision.ops.FrozenBatchNorm2d):
    """torchvision's in one kernel, in the map's dtype. `after` follows it: the norm layers of some backbones hold their
    activation. A norm that is `joined` leaves its work to the NormedConv2d before it."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5, after: nn.Module | None = None):
        super().__init__(num_features, eps)
        self.after = after
        self.joined = False

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, H, W]."""
        if not self.joined:
            x = self.normalized(x)
        return x if self.after is None else self.after(x)

    def normalized(self, x: Tensor) -> Tensor:
        """x as the norm changes it, without `after`."""
        normalize = _Normalize.apply if torch.is_grad_enabled() and x.requires_grad else _normalize
        return normalize(x, self.running_mean, self.running_var, self.weight, self.bias, self.eps)


def freeze_batch_norm(module: nn.Module) -> None:
    """Replaces the batch norms inside module, timm's with an activation among them, under the same names."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            after = nn.Sequential(*(part for part in child.children() if not isinstance(part, nn.Identity)))
            frozen = FrozenBatchNorm2d(child.num_features, child.eps, after if len(after) else None)
            frozen.load_state_dict(child.state_dict())
            setattr(module, name, frozen)
        else:
            freeze_batch_norm(child)
