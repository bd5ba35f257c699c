"""When kernels of oneDNN that do more than one layer may run. torch.compile uses the same on CPUs."""
import functools

import torch
from torch import Tensor


def fusable(x: Tensor) -> bool:
    """Whether what is computed from x is detection on a CPU, outside a graph, in a precision that oneDNN has there."""
    return (x.device.type == "cpu" and not torch.compiler.is_compiling() and not torch.jit.is_tracing()
            and not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu") and x.dtype in _precisions())


@functools.cache
def _precisions() -> set[torch.dtype]:
    if not torch.backends.mkldnn.is_available():
        return set()
    return {torch.float32} | ({torch.bfloat16} if torch.ops.mkldnn._is_mkldnn_bf16_supported() else set())
