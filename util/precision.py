"""Precision and memory format of a training or an evaluation."""
import logging
import time
from typing import TypeVar

import torch
from torch import Tensor, nn

from util.options import TrainingOptions

logger = logging.getLogger(__name__)
Model = TypeVar("Model", bound=nn.Module)
FASTER = 0.8  # of float32's time: less is not worth the digits
REPEATS = 10


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


def fastest_dtype(device: torch.device) -> torch.dtype | None:
    """bfloat16 where this device multiplies matrices clearly faster in it than in float32, as tensor cores and AMX do;
    else None, full precision: a processor may know bfloat16 and yet be slower in it. Takes some milliseconds; the log
    has what was measured."""
    full, half = (_product_seconds(device, dtype) for dtype in (torch.float32, torch.bfloat16))
    chosen = torch.bfloat16 if half < FASTER * full else None
    logger.info("%s: a matrix product takes %.2f ms in float32 and %.2f ms in bfloat16; detection in %s", device,
                1e3 * full, 1e3 * half, "bfloat16" if chosen else "float32")
    return chosen


@torch.inference_mode()
def _product_seconds(device: torch.device, dtype: torch.dtype) -> float:
    """The best time of one like those of an encoder's feed-forward."""
    tokens, weights = (torch.ones(shape, device=device, dtype=dtype) for shape in ((1024, 256), (256, 1024)))
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        float((tokens @ weights)[0, 0])  # waits for a GPU
        times.append(time.perf_counter() - start)
    return min(times)


def place(model: Model, device: torch.device) -> Model:
    """Moves a model to its device, in the memory format in which its convolutions are fastest.

    That is channels-last on CPUs and tensor cores, except on a GPU for grouped convolutions, such as those of
    EfficientNet and ConvNeXt: cuDNN generates their channels-last kernels anew for every image size, which takes
    seconds (docs/benchmarks/finetune.md).
    """
    grouped = any(isinstance(module, nn.Conv2d) and module.groups > 1 for module in model.modules())
    contiguous = device.type == "cuda" and grouped
    return model.to(device).to(memory_format=torch.contiguous_format if contiguous else torch.channels_last)
