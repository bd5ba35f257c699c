"""Cost of a detector: parameters, GFLOPs by part, speed and memory."""
import contextlib
import copy
import logging
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from measure import speed
from measure.memory import peak_memory
from measure.speed import measure_speed
from models.compiled import CompiledDetector
from models.detector import Detector
from models.inference import for_inference

logger = logging.getLogger(__name__)


def _grid_sample_flops(input_shape: tuple, grid_shape: tuple, *args, out_shape: tuple, **kwargs) -> int:
    """Four multiply-adds per bilinear sample and channel."""
    return 2 * 4 * torch.Size(out_shape).numel()


# Counted besides torch's own (convolutions, matrix products, attention); in FLOPs, two per multiply-add.
FORMULAS = {torch.ops.aten.grid_sampler_2d: _grid_sample_flops}

BATCHES = 1, 4, 8  # images in a batch whose speed is measured


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


def benchmark(model: Detector, images: list[Tensor], device: torch.device, amp_dtype: torch.dtype | None,
              compiler: str | None = None) -> str:
    """The table that --benchmark prints, for images [3, H, W]. amp_dtype: of the weights, see for_inference.
    compiler: a backend of torch.compile, whose speed is then measured too."""
    image_sizes = [(image.shape[1], image.shape[2]) for image in images]
    flops = mean_flops(model, image_sizes)
    total, trained = count_parameters(model)
    detector = for_inference(model, amp_dtype, device)
    programs: dict[str, Callable[[list[Tensor]], object]] = {"eager": detector}
    if compiler is not None:
        programs["compiled"] = CompiledDetector(detector, compiler)
    logger.info("%.1f GFLOPs, %.2f M parameters; timing batches of %s images, each for %d s or three passes",
                flops["total"], total / 1e6, ", ".join(map(str, BATCHES)), speed.SECONDS)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    speeds = {(name, batch): measure_speed(detect, images, batch, device)
              for name, detect in programs.items() for batch in BATCHES}
    (height, width), *others = set(image_sizes)
    inputs = f"mean of {len(images)} images" if others else f"one image of {height}x{width} px"
    rows = [("parameters (M)", f"{total / 1e6:.2f}"), ("  of these trained (M)", f"{trained / 1e6:.2f}"),
            ("GFLOPs", f"{flops.pop('total'):.1f}")]
    rows += [(f"  {part}", f"{value:.1f}") for part, value in flops.items() if part != "other" or value >= 0.05]
    rows += [("peak memory (MB)", f"{peak_memory(device):.0f}")]
    dtype = "float32" if amp_dtype is None else str(amp_dtype).removeprefix("torch.")
    heading = f"{inputs}; {device_name(device)}, {dtype}"
    lines = [f"{name:<28}{value:>12}" for name, value in rows]
    lines += ["", f"{'detection':<28}{'images/s':>12}{'ms, p50':>12}{'ms, p95':>12}"]
    lines += [f"{f'{name}, batch {batch}':<28}" + "".join(f"{value:>12.2f}" for value in (
        found.fps, found.percentile(50), found.percentile(95))) for (name, batch), found in speeds.items()]
    return "\n".join([heading, "-" * len(heading), *lines])


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
