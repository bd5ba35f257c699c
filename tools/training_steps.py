"""Training steps for the benchmarks: how a step is computed, and what it costs."""
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn

import engine
from measure.clock import wait_for
from measure.memory import measure_memory
from measuring import Setting, random_batch
from models import compile_parts
from models.criterion import SetCriterion
from models.detector import Detector
from models.ops import implementation
from util.cpu import keep_freed_memory
from util.metrics import Meters
from util.options import parse_options

WARM_UP = 3  # steps before those that are timed
BATCHES = 4  # different batches, used in turn
BOXES = (7, 7)  # least and most per image: COCO's mean


@dataclass
class Recipe(Setting):
    """How a step is computed. `batch` images per step, in `accumulate` batches."""

    operator: str = "native"
    channels_last: bool = True
    fused: bool = True
    compiled: bool = False
    accumulate: int = 1

    def changed(self, **changes: Any) -> "Recipe":
        """A copy with other values; "options" are added to the present ones."""
        return replace(self, **changes | {"options": self.options | changes.get("options", {})})

    def build(self) -> tuple[Detector, SetCriterion]:
        model, criterion = super().build()
        if not self.channels_last:
            model.to(memory_format=torch.contiguous_format)
        if self.compiled:
            compile_parts(model, "inductor")
        return model, criterion


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


def prepare(recipe: Recipe, steps: int, loads: torch.device) -> tuple[nn.Module, Any, list, Callable]:
    """Criterion, training state, batches on the device `loads`, and a function that trains on a loader."""
    if recipe.device.type == "cpu":
        keep_freed_memory()
    (model, criterion), options = recipe.build(), parse_options(recipe.config())
    state = recipe.train_state(model, WARM_UP + steps, recipe.fused)
    half = replace(recipe, batch=recipe.batch // recipe.accumulate, device=loads)
    optim = replace(options.training, grad_accum_steps=recipe.accumulate)
    batches = [random_batch(half, int(options.data.num_classes), seed, BOXES) for seed in range(BATCHES)]

    def run(loader: engine.Batches) -> None:
        state.step, state.meters = 0, Meters()
        with tempfile.TemporaryDirectory() as folder, implementation(recipe.operator):
            engine.train_one_epoch(model, criterion, loader, state, optim, recipe.device, Path(folder),
                                   amp_dtype=recipe.amp_dtype)

    return criterion, state, batches, run


def measure_step(recipe: Recipe, steps: int) -> dict[str, float | None]:
    """Median time of `steps` training steps after WARM_UP, and peak memory in MB. On a CPU, call it in a process of its
    own. As in a training, nothing waits for the GPU between steps.
    """
    _, _, batches, run = prepare(recipe, steps, recipe.device)
    run(TimedBatches(batches, WARM_UP * recipe.accumulate, recipe.device))
    timed = TimedBatches(batches, steps * recipe.accumulate, recipe.device)
    peak = measure_memory(lambda: run(timed), recipe.device)[1]
    seconds = median(np.diff(timed.stamps[::recipe.accumulate]).tolist())
    return {"s_per_step": seconds, "images_per_s": recipe.batch / seconds, "mb": peak}
