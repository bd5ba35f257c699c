"""Batch norm with fixed statistics and weights, as DETR trains its backbones: small batches cannot estimate them."""
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn


class FrozenBatchNorm2d(torchvision.ops.FrozenBatchNorm2d):
    """torchvision's in one kernel, in the map's dtype. `after` follows it: the norm layers of some backbones hold their
    activation."""

    def __init__(self, num_features: int, eps: float = 1e-5, after: nn.Module | None = None):
        super().__init__(num_features, eps)
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, H, W]."""
        x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return x if self.after is None else self.after(x)


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
