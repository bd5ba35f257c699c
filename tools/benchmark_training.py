"""What a training step costs, what changes that, and where its time goes.

    python tools/benchmark_training.py
    python tools/benchmark_training.py --device cuda --dtype bfloat16 --levers torch use_checkpoint --json training.json

The base is a step with the compiled operator, channels-last convolutions and fused AdamW; each lever changes one thing
of it, on a CPU in a process of its own. Weights and images are random, with 7 boxes an image: only shapes matter.
"""
import argparse
import functools
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import common  # first: it puts the project on the path
import engine
from datasets.coco import SPLITS, CocoDetection
from datasets.loaders import train_loader
from datasets.transforms import train_transforms
from measure.memory import measure_memory
from measuring import (
    DTYPES,
    IMPLEMENTATIONS,
    Setting,
    add_common_arguments,
    apart,
    check_device,
    describe_run,
    in_child,
    random_batch,
    title,
)
from models import compile_parts
from models.ops import implementation
from util.config import parse_pairs
from util.cpu import keep_freed_memory
from util.errors import UserError
from util.logger import Progress
from util.markdown import table, three_digits
from util.metrics import Meters
from util.optim import MovingAverage
from util.options import parse_options

CONFIG = "config/LiteDINO/r50_h3l1_2p1x3.py"
WARM_UP = 3  # steps before those that are timed
BATCHES = 4  # batches that differ; then they come again
BOXES = (7, 7)  # an image: COCO's mean
FASTER = 0.97  # a lever with less of the base's time than this joins the combination
VIEWS = {torch.ops.aten._unsafe_view.default, torch.ops.aten.detach.default, torch.ops.aten.lift_fresh.default}
PICTURES, SIDES = 16, (640, 480)  # of the generated set that the loader is measured on; width and height, px


@dataclass
class Recipe(Setting):
    """How a step is computed. `batch` images a step, in `accumulate` batches."""

    operator: str = "native"
    channels_last: bool = True
    fused: bool = True
    compiled: bool = False
    accumulate: int = 1

    def changed(self, **changes: Any) -> "Recipe":
        """With other values; "options" are added to those that are there."""
        return replace(self, **changes | {"options": self.options | changes.get("options", {})})

    def build(self) -> tuple[nn.Module, nn.Module]:
        model, criterion = super().build()
        if not self.channels_last:
            model.to(memory_format=torch.contiguous_format)
        if self.compiled:
            compile_parts(model, "inductor")
        return model, criterion


CHECKPOINTS = {"use_checkpoint": True, "deformable_use_checkpoint": True}
LEVERS: dict[str, tuple[str, dict]] = {  # name: what it does, fields of Recipe
    "torch": ("PyTorch's operator", {"operator": "torch"}),
    "bf16": ("mixed precision (bfloat16)", {"dtype": "bfloat16"}),
    "use_checkpoint": ("backbone recomputed in the backward pass", {"options": {"use_checkpoint": True}}),
    "deformable_use_checkpoint": ("transformer recomputed", {"options": {"deformable_use_checkpoint": True}}),
    "both_checkpoints": ("backbone and transformer recomputed", {"options": CHECKPOINTS}),
    "contiguous": ("not channels-last", {"channels_last": False}),
    "unfused": ("AdamW not fused", {"fused": False}),
    "half_batches": ("half batches, grad_accum_steps=2", {"accumulate": 2}),
    "compile": ("torch.compile (inductor)", {"compiled": True}),
}


class TimedBatches:
    """`count` batches, cycled; `stamps` are the times (s) at which each was asked for, and of the end."""

    def __init__(self, batches: list, count: int, device: torch.device):
        self.batches, self.count, self.device = batches, count, device
        self.stamps: list[float] = []

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator:
        for i in range(self.count):
            self.stamps.append(time.perf_counter())
            yield self.batches[i % len(self.batches)]
        wait_for(self.device)
        self.stamps.append(time.perf_counter())


class Clock:
    """Seconds in each part of the work. What runs within another part counts for itself alone, and the device finishes
    a part before the next begins."""

    REST = "rest"

    def __init__(self, device: torch.device):
        self.device, self.spent = device, Counter()
        self.open, self.since = [self.REST], time.perf_counter()

    def switch(self) -> None:
        """What was done since the last call belongs to the innermost part."""
        wait_for(self.device)
        now = time.perf_counter()
        self.spent[self.open[-1]] += now - self.since
        self.since = now

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self.switch()
        self.open.append(name)
        yield
        self.switch()
        self.open.pop()

    def wrap(self, owner: Any, attribute: str, name: str) -> None:
        """Makes the calls of a function or method count as a part, until this process ends."""
        call = getattr(owner, attribute)

        @functools.wraps(call)
        def timed(*args, **kwargs):
            with self.part(name):
                return call(*args, **kwargs)

        setattr(owner, attribute, timed)


class CallCounter(TorchDispatchMode):
    """Calls of torch's operators by the part that the clock is in. Views, which compute nothing, do not count."""

    def __init__(self, clock: Clock):
        super().__init__()
        self.clock, self.calls = clock, Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if not (function.is_view or function in VIEWS):
            self.calls[self.clock.open[-1]] += 1
        return function(*args, **(kwargs or {}))


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def prepare(recipe: Recipe, steps: int, loads: torch.device) -> tuple[nn.Module, Any, list, Callable]:
    """Criterion, training state, batches on the device `loads`, and a function that trains on a loader."""
    if recipe.device.type == "cpu":
        keep_freed_memory()
    (model, criterion), options = recipe.build(), parse_options(recipe.config())
    state = recipe.train_state(model, WARM_UP + steps, recipe.fused)
    half = replace(recipe, batch=recipe.batch // recipe.accumulate, device=loads)
    optim = replace(options.training, grad_accum_steps=recipe.accumulate)
    batches = [random_batch(half, options.data.num_classes, seed, BOXES) for seed in range(BATCHES)]

    def run(loader: Iterable) -> None:
        state.step, state.meters = 0, Meters()
        with tempfile.TemporaryDirectory() as folder, implementation(recipe.operator):
            engine.train_one_epoch(model, criterion, loader, state, optim, recipe.device, Path(folder),
                                   amp_dtype=recipe.amp_dtype)

    return criterion, state, batches, run


def measure_step(recipe: Recipe, steps: int) -> dict[str, float | None]:
    """Median time of `steps` training steps after WARM_UP, and peak memory in MB. On a CPU to be called in a process of
    its own.

    The GPU is not waited for between steps, as in a training.
    """
    _, _, batches, run = prepare(recipe, steps, recipe.device)
    run(TimedBatches(batches, WARM_UP * recipe.accumulate, recipe.device))
    timed = TimedBatches(batches, steps * recipe.accumulate, recipe.device)
    peak = measure_memory(lambda: run(timed), recipe.device)[1]
    seconds = median(np.diff(timed.stamps[::recipe.accumulate]).tolist())
    return {"s_per_step": seconds, "images_per_s": recipe.batch / seconds, "mb": peak}


def measure_parts(recipe: Recipe, steps: int, workers: int) -> dict:
    """Mean ms a step of each part of `steps` steps after WARM_UP, and its calls of torch's operators in a further one,
    with a loader at work and a moving average of the weights. To be called in a process of its own: it wraps functions
    of the project.

    The loader reads generated pictures with the config's augmentations, whose sizes vary; the step then computes on a
    batch of the recipe's size, so that its parts belong to one size.
    """
    criterion, state, batches, run = prepare(recipe, steps, torch.device("cpu"))
    if recipe.device.type == "cuda":
        batches = [(samples.pin_memory(), targets) for samples, targets in batches]
    options = parse_options(recipe.config())
    state.ema = MovingAverage(state.model, options.training.ema_decay)
    clock = Clock(recipe.device)
    wrap_parts(clock, state, criterion)
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder))
        dataset = CocoDetection(folder, "train", train_transforms(options.data))
        worker_ms = measure_worker(dataset, recipe.batch, steps)
        loaded = iter(train_loader(dataset, recipe.batch, workers, seed=0, epoch_batches=WARM_UP + steps + 1))

        def replaced(count: int) -> Iterable:
            return WaitingBatches(clock, loaded, batches, count)

        run(replaced(WARM_UP))
        clock.switch()
        clock.spent.clear()
        run(replaced(steps))
        clock.switch()
        parts = {name: 1e3 * clock.spent[name] / steps for name in [*PARTS, Clock.REST]}
        with CallCounter(clock) as counter:
            run(replaced(1))
    return {"ms": parts, "step_ms": sum(parts.values()), "calls": {name: counter.calls[name] for name in parts},
            "worker_ms": worker_ms, "workers": workers, "steps": steps}


class WaitingBatches(TimedBatches):
    """Waits for a loaded batch on the clock, and gives one of `batches` for it."""

    def __init__(self, clock: Clock, loaded: Iterator, batches: list, count: int):
        super().__init__(batches, count, clock.device)
        self.clock, self.loaded = clock, loaded

    def __iter__(self) -> Iterator:
        for batch in super().__iter__():
            with self.clock.part("data: waiting"):
                next(self.loaded)
            yield batch


PARTS = ["data: waiting", "data: to the device", "forward: backbone", "forward: encoder",
         "forward: decoder, heads and the rest", "matching", "losses", "backward", "gradient clipping", "optimizer",
         "moving average", "log and its transfer"]


def wrap_parts(clock: Clock, state: Any, criterion: nn.Module) -> None:
    model = state.model
    clock.wrap(model, "forward", "forward: decoder, heads and the rest")
    for part, paths in model.PARTS.items():
        for kind in ("backbone", "encoder"):
            for path in paths if part.startswith(kind) else []:
                clock.wrap(model.get_submodule(path), "forward", f"forward: {kind}")
    clock.wrap(criterion, "forward", "losses")
    clock.wrap(type(criterion.matcher), "__call__", "matching")
    clock.wrap(engine, "to_device", "data: to the device")
    clock.wrap(Tensor, "backward", "backward")
    clock.wrap(nn.utils, "clip_grad_norm_", "gradient clipping")
    clock.wrap(state.optimizer, "step", "optimizer")
    clock.wrap(state.optimizer, "zero_grad", "optimizer")
    clock.wrap(state.ema, "update_parameters", "moving average")
    for owner, attribute in ((engine, "reduced"), (Meters, "update"), (Progress, "show")):
        clock.wrap(owner, attribute, "log and its transfer")


def measure_worker(dataset: CocoDetection, batch: int, count: int) -> float:
    """Median ms that a data-loading process, which has one thread, needs for a batch."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    stamps = []
    for _ in train_loader(dataset, batch, 0, seed=0, epoch_batches=count + 2):
        stamps.append(time.perf_counter())
    torch.set_num_threads(threads)
    return 1e3 * median(np.diff(stamps).tolist())


def write_pictures(folder: Path) -> None:
    """A COCO folder of PICTURES JPEGs whose files are about as large as photographs', with 7 boxes each."""
    (folder / SPLITS["train"][0]).mkdir()
    generator = np.random.default_rng(0)
    images, boxes = [], []
    for index in range(PICTURES):
        coarse = generator.integers(256, size=(SIDES[1] // 8, SIDES[0] // 8, 3), dtype=np.uint8)
        images.append({"id": index, "file_name": f"{index}.jpg", "width": SIDES[0], "height": SIDES[1]})
        Image.fromarray(coarse).resize(SIDES, Image.Resampling.BICUBIC).save(
            folder / SPLITS["train"][0] / f"{index}.jpg", quality=95)
        for left, top, side in generator.integers((0, 0, 20), (400, 300, 170), size=(BOXES[0], 3)).tolist():
            boxes.append({"id": len(boxes) + 1, "image_id": index, "category_id": 1, "iscrowd": 0,
                          "bbox": [left, top, side, side], "area": side * side})
    (folder / SPLITS["train"][1]).parent.mkdir()
    (folder / SPLITS["train"][1]).write_text(json.dumps(
        {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "thing"}]}))


def choose_levers(names: list[str] | None, base: Recipe, compiled: bool) -> list[str]:
    """The levers to measure, in order; unless they are named, torch.compile is one only where `compiled` asks for it.
    Raises UserError for one that would change nothing or cannot be."""
    useless = {"torch": base.operator == "torch" and "--impl torch is the base already",
               "bf16": base.dtype == "bfloat16" and "--dtype bfloat16 is the base already",
               "half_batches": base.batch % 2 and "it needs an even --batch"}
    if names is None:
        return [name for name in LEVERS if not useless.get(name) and (compiled or name != "compile")]
    for name in names:
        if useless.get(name):
            raise UserError(f"--levers {name}: {useless[name]}")
    return list(dict.fromkeys(names))


def measure_levers(base: Recipe, names: list[str], steps: int) -> list[dict]:
    """A record of the base, of each lever, and of all levers together that were faster than the base, if several were.
    Where there are levers, the base is measured again after them, to show how far two measurements of the same differ.
    """
    def measure(name: str, change: str, recipe: Recipe) -> dict:
        print(f"{name}: {change} ...", file=sys.stderr, flush=True)
        return {"name": name, "change": change} | apart(base.device, measure_step, recipe, steps)

    described = f"{IMPLEMENTATIONS[base.operator]} operator, {base.dtype}, channels-last, fused AdamW"
    first = measure("base", described, base)
    levers = [measure(name, LEVERS[name][0], base.changed(**LEVERS[name][1])) for name in names]
    again = [measure("base again", described, base)] if levers else []
    seconds = min(record["s_per_step"] for record in [first, *again])
    records = [first, *levers, *again]
    faster = [record["name"] for record in levers if record["s_per_step"] < FASTER * seconds]
    if len(faster) > 1:
        together = functools.reduce(lambda recipe, name: recipe.changed(**LEVERS[name][1]), faster, base)
        records.append(measure("combined", " + ".join(faster), together))
    return [record | {"time_ratio": record["s_per_step"] / seconds,
                      "memory_ratio": record["mb"] and record["mb"] / first["mb"]} for record in records]


def report_levers(records: list[dict], steps: int) -> str:
    keys = ["s_per_step", "images_per_s", "mb", "time_ratio", "memory_ratio"]
    rows = [[record["name"], record["change"], *(three_digits(record[key]) for key in keys)] for record in records]
    columns = ["lever", "change", "s/step", "images/s", "MB", "time / base", "MB / base"]
    return (f"{table(columns, rows)}\n\nMedian of {steps} steps after {WARM_UP}; MB: peak in all; base: the faster of "
            "its two.\n")


def report_parts(parts: dict, batch: int) -> str:
    rows = [[name, three_digits(ms), three_digits(100 * ms / parts["step_ms"]), str(parts["calls"][name])]
            for name, ms in parts["ms"].items()]
    total = ["all", three_digits(parts["step_ms"]), "100", str(sum(parts["calls"].values()))]
    text = table(["part of a step of the base", "ms", "%", "calls"], [*rows, total])
    return (f"{text}\n\nMean of {parts['steps']} steps after {WARM_UP}, waiting for the device after each part. calls: "
            "of torch's operators without views, each about a kernel; a GPU that waits for them is faster with fewer. "
            f"{parts['workers']} data-loading processes; one needs {three_digits(parts['worker_ms'])} ms for a batch of "
            f"{batch} ({SIDES[0]}x{SIDES[1]} px JPEGs with the config's augmentations).\n")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    levers = "\n".join(f"  {name:<26}{change}" for name, (change, _) in LEVERS.items())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     epilog=f"levers:\n{levers}")
    add_common_arguments(parser)
    add = parser.add_argument
    add("--config", default=CONFIG, help="default: %(default)s")
    add("--options", nargs="+", default=[], metavar="KEY=VALUE", help="override config keys")
    add("--levers", nargs="*", choices=LEVERS, metavar="NAME", help="default: all that the base allows but compile")
    add("--compile", action="store_true", help="without --levers: torch.compile too, which takes minutes")
    add("--impl", choices=IMPLEMENTATIONS, default="native", help="operator of the base; default: %(default)s")
    add("--dtype", choices=DTYPES, default="float32", help="of the base; half precision means autocast")
    add("--size", nargs=2, type=int, default=(800, 1066), metavar=("H", "W"), help="px; default: 800 1066")
    add("--batch", type=int, help="images a step; default: 1 on a CPU, 2 on CUDA")
    add("--steps", type=int, help="to time; default: 5 on a CPU, 20 on CUDA")
    add("--num_workers", type=int, default=2, help="data-loading processes; default: %(default)s")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> int:
    device = check_device(args.device, [args.impl], "--impl torch")
    if args.threads:
        torch.set_num_threads(args.threads)
    on_gpu = device.type == "cuda"
    steps, batch = args.steps or (20 if on_gpu else 5), args.batch or (2 if on_gpu else 1)
    if min(steps, batch, *args.size) < 1 or args.num_workers < 0:
        raise UserError("--steps, --batch and --size must be at least 1, --num_workers at least 0")
    base = Recipe(args.config, parse_pairs(args.options), tuple(args.size), batch, args.dtype, device,
                  torch.get_num_threads(), operator=args.impl)
    base.config()  # an error in it should come before the work
    names = choose_levers(args.levers, base, args.compile)
    about = describe_run(device, args.dtype) | {"config": args.config, "size": args.size, "batch": batch,
                                                "steps": steps}
    records = measure_levers(base, names, steps)
    print("parts of a step ...", file=sys.stderr, flush=True)
    parts = in_child(measure_parts, base, steps, args.num_workers)  # it wraps functions
    text = "\n".join([f"{title(about)}; training of {args.config}, batch {batch}, {args.size[0]}x{args.size[1]} px\n",
                      report_levers(records, steps), report_parts(parts, batch), f"`{about['command']}`\n"])
    print(text)
    if args.json:
        args.json.write_text(json.dumps(about | {"levers": records, "parts": parts}, indent=1) + "\n")
    if args.markdown:
        args.markdown.write_text(text)
    return 0


if __name__ == "__main__":
    common.run_tool(main, parse_args())
