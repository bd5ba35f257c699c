"""Memory that a call or the whole process takes."""
import ctypes
import gc
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def measure_memory(call: Callable[[], Any], device: torch.device) -> tuple[float | None, float | None]:
    """Peak during `call` in MB: beyond what was there before it, and in total.

    On CUDA the allocator counts. On a CPU the kernel does: VmHWM is the highest resident memory of this process so far,
    and writing 5 to clear_refs resets it to the current value. Memory that was freed but not returned to the system
    would hide the call's allocations, so it is returned first. Where clear_refs is not allowed, VmHWM is right only if
    the call raises it, and otherwise too high. None where there is no /proc.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device) / 2**20
        call()
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device) / 2**20
        return peak - before, peak
    if not Path("/proc/self/status").is_file():
        call()
        return None, None
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
    if trim is not None:
        trim(0)
    before = resident("VmRSS")
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        pass
    call()
    peak = resident("VmHWM")
    return max(0.0, peak - before), peak


def resident(field: str) -> float:
    """A field of /proc/self/status in MB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 2**10 for line in lines if line.startswith(field + ":"))


def peak_memory(device: torch.device) -> float:
    """Peak memory so far in MB: of this process's tensors on a GPU, of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss is in bytes on macOS, in KB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
