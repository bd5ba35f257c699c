"""How long each part of a training step takes: part of tools/benchmark_training.py."""
import json
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import engine
from datasets.annotations import SPLITS
from datasets.augmentation import Augmentation
from datasets.coco import CocoDetection
from datasets.loaders import train_loader
from measure.clock import CallCounter, Clock
from training_steps import BOXES, WARM_UP, Recipe, TimedBatches, prepare
from util.logger import Progress
from util.markdown import table, three_digits
from util.metrics import Meters
from util.optim import MovingAverage
from util.options import parse_options

PICTURES, SIDES = 16, (640, 480)  # number, width and height (px) of the pictures that the loader is measured on
PARTS = ["data: waiting", "data: to the device", "forward: backbone", "forward: encoder",
         "forward: decoder, heads and the rest", "matching", "losses", "backward", "gradient clipping", "optimizer",
         "moving average", "log and its transfer"]


def measure_parts(recipe: Recipe, steps: int, workers: int) -> dict:
    """Mean ms per step of each part over `steps` steps after WARM_UP, and its calls of torch's operators in one more
    step, with a loader at work and a moving average of the weights. Call it in a process of its own: it wraps functions
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
        dataset = CocoDetection(folder, "train", Augmentation(options.data))
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


def wrap_parts(clock: Clock, state: Any, criterion: nn.Module) -> None:
    model = state.model
    clock.wrap(model, "forward", "forward: decoder, heads and the rest")
    for part, paths in model.parts().items():
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
    """A COCO folder of PICTURES JPEGs with 7 boxes each; the files are about as large as those of photographs."""
    (folder / SPLITS["train"][0]).mkdir()
    generator = np.random.default_rng(0)
    images: list[dict] = []
    boxes: list[dict] = []
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
        {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "thing"}]}), encoding="utf-8")


def report_parts(parts: dict, batch: int) -> str:
    rows = [[name, three_digits(ms), three_digits(100 * ms / parts["step_ms"]), str(parts["calls"][name])]
            for name, ms in parts["ms"].items()]
    total = ["all", three_digits(parts["step_ms"]), "100", str(sum(parts["calls"].values()))]
    text = table(["part of a step of the base", "ms", "%", "calls"], [*rows, total])
    return (f"{text}\n\nMean of {parts['steps']} steps after {WARM_UP}, waiting for the device after each part. calls: "
            "of torch's operators without views, each about a kernel; a GPU that waits for them is faster with fewer. "
            f"{parts['workers']} data-loading processes; one needs {three_digits(parts['worker_ms'])} ms for a batch "
            f"of {batch} ({SIDES[0]}x{SIDES[1]} px JPEGs with the config's augmentations).\n")
