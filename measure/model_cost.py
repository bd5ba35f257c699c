"""Cost of a detector: parameters, GFLOPs by part, speed and memory."""
import contextlib
import copy
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from measure.memory import peak_memory
from models.detector import Detector

logger = logging.getLogger(__name__)


def _grid_sample_flops(input_shape: tuple, grid_shape: tuple, *args, out_shape: tuple, **kwargs) -> int:
    """Four multiply-adds per bilinear sample and channel."""
    return 2 * 4 * torch.Size(out_shape).numel()


# Counted besides torch's own (convolutions, matrix products, attention); in FLOPs, two per multiply-add.
FORMULAS = {torch.ops.aten.grid_sampler_2d: _grid_sample_flops}

SECONDS = 10.0  # for which a speed is measured


@dataclass
class Speed:
    """Images per second at a batch size."""

    batch: int
    fps: float


def count_flops(model: Detector, size: tuple[int, int]) -> dict[str, float]:
    """GFLOPs of one image of `size` (height, width) px, multiply-add = 1: one entry per part of `model.parts()`, in
    order, and "total". Computes only shapes, on the meta device, so it is fast and needs no memory.

    `parts()` maps a part's name to prefixes of module names; the longest prefix decides.
    """
    model = copy.deepcopy(model).to("meta").eval().requires_grad_(False)
    counter = FlopCounterMode(display=False, custom_mapping=FORMULAS)
    parts = model.parts()
    spent = dict.fromkeys(parts, 0)
    counted: set[nn.Module] = set()  # shared heads are listed once per layer
    stack: list[list] = []  # [part, FLOPs when it started, FLOPs spent inside in other parts]

    def enter(part: str):
        return lambda *_: stack.append([part, counter.get_total_flops(), 0])

    def leave(*_) -> None:
        part, start, inside = stack.pop()
        whole = counter.get_total_flops() - start
        spent[part] += whole - inside
        if stack:
            stack[-1][2] += whole

    for part, prefixes in parts.items():
        for prefix in prefixes:
            module = model.get_submodule(prefix)
            for leaf in module if isinstance(module, nn.ModuleList) else [module]:
                if leaf not in counted:
                    counted.add(leaf)
                    leaf.register_forward_pre_hook(enter(part))
                    leaf.register_forward_hook(leave)
    with counter, torch.no_grad():
        model([torch.empty(3, *size, device="meta")])
    total = counter.get_total_flops()
    spent["other"] = total - sum(spent.values())
    return {part: flops / 2e9 for part, flops in (spent | {"total": total}).items()}


def count_part_parameters(model: Detector) -> dict[str, int]:
    """Parameters of each part of `model.parts()`, in order, and "other". A parameter that several parts share, as the
    decoder and the heads do, counts for the last of them.
    """
    parts = model.parts()
    owner = {parameter: part for part, prefixes in parts.items() for prefix in prefixes
             for parameter in model.get_submodule(prefix).parameters()}
    counts = dict.fromkeys([*parts, "other"], 0)
    for parameter in model.parameters():
        counts[owner.get(parameter, "other")] += parameter.numel()
    return counts


def mean_flops(model: Detector, sizes: Iterable[tuple[int, int]]) -> dict[str, float]:
    """count_flops averaged over images of several sizes; equal sizes are counted once."""
    sizes = list(sizes)
    by_size = {size: count_flops(model, size) for size in set(sizes)}
    rows = [by_size[size] for size in sizes]
    return {part: sum(row[part] for row in rows) / len(rows) for part in rows[0]}


@torch.no_grad()
def measure_speed(model: nn.Module, images: list[Tensor], batch: int, device: torch.device,
                  amp_dtype: torch.dtype | None, seconds: float | None = None) -> Speed:
    """Times at least 3 forward passes on batches of `images` (cycled), for about `seconds`, after one to warm up.

    SECONDS is the default.
    """
    model.eval()

    def run(first: int) -> float:
        inputs = [images[(first + i) % len(images)].to(device) for i in range(batch)]
        start = time.perf_counter()
        with torch.autocast(device.type, amp_dtype, enabled=amp_dtype is not None):
            model(inputs)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    run(0)
    times: list[float] = []
    while len(times) < 3 or sum(times) < (SECONDS if seconds is None else seconds):
        times.append(run(len(times) * batch))
    return Speed(batch, len(times) * batch / sum(times))


def benchmark(model: Detector, images: list[Tensor], device: torch.device, amp_dtype: torch.dtype | None) -> str:
    """The table that --benchmark prints, for images [3, H, W]."""
    image_sizes = [(image.shape[1], image.shape[2]) for image in images]
    flops = mean_flops(model, image_sizes)
    total, trained = count_parameters(model)
    logger.info("%.1f GFLOPs, %.2f M parameters; timing batches of 1 and 4, each for %d s or three passes",
                flops["total"], total / 1e6, SECONDS)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    speeds = [measure_speed(model, images, batch, device, amp_dtype) for batch in (1, 4)]
    (height, width), *others = set(image_sizes)
    inputs = f"mean of {len(images)} images" if others else f"one image of {height}x{width} px"
    rows = [("parameters (M)", f"{total / 1e6:.2f}"), ("  of these trained (M)", f"{trained / 1e6:.2f}"),
            ("GFLOPs", f"{flops.pop('total'):.1f}")]
    rows += [(f"  {part}", f"{value:.1f}") for part, value in flops.items() if part != "other" or value >= 0.05]
    rows += [(f"images/s, batch {speed.batch}", f"{speed.fps:.2f}") for speed in speeds]
    rows += [("peak memory (MB)", f"{peak_memory(device):.0f}")]
    dtype = "float32" if amp_dtype is None else f"autocast {str(amp_dtype).removeprefix('torch.')}"
    heading = f"{inputs}; {device_name(device)}, {dtype}"
    return "\n".join([heading, "-" * len(heading), *(f"{name:<28}{value:>12}" for name, value in rows)])


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Number of all parameters, and of the trainable ones."""
    return (sum(p.numel() for p in model.parameters()), sum(p.numel() for p in model.parameters() if p.requires_grad))


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError, StopIteration), open("/proc/cpuinfo", encoding="utf-8") as lines:
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
        return f"{model}, {torch.get_num_threads()} threads"
    return f"CPU, {torch.get_num_threads()} threads"
