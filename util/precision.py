"""Precision and memory format of a training or an evaluation."""
from typing import TypeVar

import torch
from torch import Tensor, nn

from util.options import TrainingOptions

Model = TypeVar("Model", bound=nn.Module)


def exact(dtype: torch.dtype) -> torch.dtype:
    """float32 for half precision, float32 and float64 for themselves."""
    return torch.float32 if dtype.itemsize < 4 else dtype


def at_least_float32(x: Tensor) -> Tensor:
    """x itself in float32 or float64, a float32 copy of half precision."""
    return x.to(exact(x.dtype))


def amp_dtype(options: TrainingOptions, flag: bool, device: torch.device) -> torch.dtype | None:
    """The half precision of autocast, or None for full precision. flag: whether --amp was given."""
    if not (flag or options.amp == "cuda" and device.type == "cuda"):
        return None
    if options.amp_dtype == "auto":
        bfloat16 = device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 0)  # else emulated
        return torch.bfloat16 if bfloat16 else torch.float16
    return getattr(torch, options.amp_dtype)


def place(model: Model, device: torch.device) -> Model:
    """Moves a model to its device, in the memory format in which its convolutions are fastest.

    That is channels-last on CPUs and tensor cores, except on a GPU for grouped convolutions, such as those of
    EfficientNet and ConvNeXt: cuDNN generates their channels-last kernels anew for every image size, which takes
    seconds (docs/benchmarks/finetune.md).
    """
    grouped = any(isinstance(module, nn.Conv2d) and module.groups > 1 for module in model.modules())
    contiguous = device.type == "cuda" and grouped
    return model.to(device).to(memory_format=torch.contiguous_format if contiguous else torch.channels_last)
