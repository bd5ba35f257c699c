"""What a training step costs, and the largest batch that fits: on CUDA by trying, on a CPU by extrapolation.

B batch, H and W image height and width.
"""
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from datasets.transforms import model_input
from measure.memory import measure_memory, resident
from models.criterion import weighted_sum
from util.distributed import world_size
from util.errors import UserError
from util.nested_tensor import NestedTensor
from util.options import Options

Batch = tuple[NestedTensor, list[dict[str, Tensor]]]

SPARE_CUDA = 0.1  # share of the GPU's memory, for fragmentation and for other libraries
USED_CPU = 0.8  # share of the free memory: the system kills a process that takes too much
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class StepCost:
    """Median seconds of a step, and the peak in bytes: of the GPU's allocations, or of the whole process on a CPU (None
    if the system does not tell)."""

    seconds: float
    peak_bytes: int | None


def worst_batch(batch_size: int, shape: tuple[int, int], boxes: int, num_classes: int) -> Batch:
    """The most expensive batch of a data set: noise images of `shape` (H, W) without padding."""
    generator = torch.Generator().manual_seed(0)
    targets = [{"labels": torch.randint(num_classes, (boxes,), generator=generator),
                "boxes": 0.1 + 0.4 * torch.rand(boxes, 4, generator=generator)} for _ in range(batch_size)]
    images = torch.randn(batch_size, 3, *shape, generator=generator)
    return NestedTensor(images, torch.zeros(batch_size, *shape, dtype=torch.bool)), targets


def measure_step(model: nn.Module, criterion: nn.Module, batches: Sequence[Batch], device: torch.device,
                 amp_dtype: torch.dtype | None = None) -> StepCost:
    """Runs a training step (forward, loss, backward, clipping, AdamW) on each batch, after a warm-up on the first.

    The optimizer is a separate one, whose moments take as much memory as the training's. Afterwards weights, buffers,
    gradients, modes and random states are what they were, even after an error such as running out of memory. A copy
    of the weights is kept in host memory; on a CPU it is not counted. A moving average counts if it exists already.
    """
    modules = (model, criterion)
    modes = [(module, module.training) for module in chain(model.modules(), criterion.modules())]
    tensors = list(chain.from_iterable(chain(module.parameters(), module.buffers()) for module in modules))
    copies = [tensor.detach().to("cpu", copy=True) for tensor in tensors]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    seconds: list[float] = []

    def steps() -> None:
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = AdamW(trained, fused=True)
        for batch in [batches[0], *batches]:
            seconds.append(_step(model, criterion, optimizer, trained, batch, device, amp_dtype))
            _restore(tensors, copies)  # large gradients of random weights must not spoil the next step

    cuda = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=cuda):
            for module in modules:
                module.train()
            for parameter, _ in gradients:
                parameter.grad = None
            _, peak = measure_memory(steps, device)
    finally:
        _restore(tensors, copies)
        for parameter, gradient in gradients:
            parameter.grad = gradient
        for module, mode in modes:
            module.training = mode
    if peak is not None:
        kept = sum(copy.nbytes for copy in copies) if device.type != "cuda" else 0
        peak = round(peak * 2**20) - kept
    return StepCost(statistics.median(seconds[1:]), peak)


def _step(model: nn.Module, criterion: nn.Module, optimizer: AdamW, trained: list[nn.Parameter], batch: Batch,
          device: torch.device, amp_dtype: torch.dtype | None) -> float:
    """One training step; returns its seconds."""
    start = time.perf_counter()
    samples = model_input(batch[0].to(device))
    targets = [{name: target[name].to(device) for name in ("labels", "boxes")} for target in batch[1]]
    with torch.autocast(device.type, amp_dtype, enabled=amp_dtype is not None):
        outputs = model(samples, targets)
    losses = criterion(outputs, targets)
    weighted_sum(losses, cast(dict[str, float], criterion.weight_dict)).backward()
    nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


@torch.no_grad()
def _restore(tensors: list[Tensor], copies: list[Tensor]) -> None:
    for tensor, copy in zip(tensors, copies):
        tensor.copy_(copy)


def largest_batch_size(peak: Callable[[int], int], limit_bytes: int, most: int) -> int:
    """The largest batch up to `most` whose peak in bytes is within the limit; 0 if not even one image is.

    peak(batch_size) may raise torch.cuda.OutOfMemoryError. Doubles until a batch does not fit, then bisects; a larger
    batch is taken to need no less memory.
    """
    fits, fails, size = 0, most + 1, 1
    while fits + 1 < fails:
        if _fits(peak, size, limit_bytes):
            fits = size
        else:
            fails = size
        size = min(2 * fits, most) if fails > most else (fits + fails) // 2
    return fits


def _fits(peak: Callable[[int], int], size: int, limit_bytes: int) -> bool:
    try:
        return peak(size) <= limit_bytes
    except torch.cuda.OutOfMemoryError:
        pass  # leave the handler first: the error's frames hold the step's tensors
    gc.collect()
    torch.cuda.empty_cache()
    return False


def extrapolated_batch_size(peak: Callable[[int], int], limit_bytes: int, most: int) -> int:
    """The same, extrapolated from batches of one and two images: a CPU that runs out of memory raises nothing."""
    one = peak(1)
    if one > limit_bytes or most == 1:
        return int(one <= limit_bytes)
    slope = max(peak(2) - one, 1)
    return min(1 + (limit_bytes - one) // slope, most)


def memory_limit(device: torch.device) -> int:
    """Bytes that a training's peak (StepCost.peak_bytes) may reach. UserError where the system does not tell."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - SPARE_CUDA * total)
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
        return round(resident("VmRSS") * 2**20 + USED_CPU * min(free, _container_free()))
    except (OSError, StopIteration) as error:
        raise UserError("this system does not tell its free memory (no /proc/meminfo)") from error


def _container_free() -> float:
    """Bytes below a container's own limit; infinite without one. Its page cache counts as free."""
    try:
        limit, used = ((CGROUP / name).read_text(encoding="utf-8").strip() for name in ("memory.max", "memory.current"))
        cache = next(int(line.split()[1]) for line in (CGROUP / "memory.stat").read_text(encoding="utf-8").splitlines()
                     if line.startswith("inactive_file "))
        return float("inf") if limit == "max" else int(limit) - int(used) + cache
    except (OSError, StopIteration):
        return float("inf")


def find_batch_size(model: nn.Module, criterion: nn.Module, batch: Callable[[int], Batch], device: torch.device,
                    amp_dtype: torch.dtype | None, most: int) -> int:
    """The largest batch size up to `most` with which a training fits into memory: --find_batch_size.

    batch(size) makes a batch, such as worst_batch's, of images of one shape. Raises UserError if no batch fits, or if
    there are several processes: they would wait for each other in steps that only some of them do.
    """
    if world_size() > 1:
        raise UserError("the batch size is found in a single process: run --find_batch_size on one GPU, and pass "
                        "the result to the others with --options batch_size=N")

    def peak(size: int) -> int:
        found = measure_step(model, criterion, [batch(size)], device, amp_dtype).peak_bytes
        if found is None:
            raise UserError("this system does not tell how much memory a process takes (no /proc)")
        return found

    search = largest_batch_size if device.type == "cuda" else extrapolated_batch_size
    limit = memory_limit(device)
    size = search(peak, limit, most)
    if size == 0:
        raise UserError(f"not even one image fits into the {limit / 2**30:.1f} GiB that are free on {device}")
    return size


def memory_levers(options: Options, amp: bool = False) -> list[str]:
    """What reduces the memory of a step and is not done yet, the cheapest in time and AP first."""
    levers = {
        "--amp": not amp,
        "--options use_checkpoint=True (the backbone computes its activations again)":
            not options.backbone.use_checkpoint,
        "--options deformable_use_checkpoint=True (the transformer does)":
            not options.transformer.deformable_use_checkpoint,
        "--options batch_size=1 grad_accum_steps=N (the same gradients from smaller batches)":
            options.data.batch_size > 1,
        f"--options image_size=N below {max(options.data.data_aug_scales)} (small objects suffer)": True,
    }
    return [lever for lever, possible in levers.items() if possible]
