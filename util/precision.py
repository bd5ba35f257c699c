"""Half precision stays inside the model."""
import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """x itself in float32 or float64, a float32 copy of half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
