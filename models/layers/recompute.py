"""Less memory for more arithmetic."""
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def recomputed(layer: nn.Module, *args: Any, enabled: bool = True) -> Any:
    """layer(*args); if `enabled`, its activations in training are computed again in the backward pass instead of
    being kept.
    """
    if enabled and layer.training and torch.is_grad_enabled():
        return checkpoint(layer, *args, use_reentrant=False)
    return layer(*args)
