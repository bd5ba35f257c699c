"""What the benchmarks in tools/ share: the model that is measured and batches to train it on, fresh processes, and what
a run was measured with."""
import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from common import add_device_flag
from inference.backends.torch_model import TorchBackend
from measure.model_cost import device_name
from models import build_detector, build_model
from models.criterion import SetCriterion
from models.detector import Detector
from models.inference import for_inference
from models.ops import cpu_kernels, native_available
from util.config import Config, load_config, parse_pairs
from util.distributed import init_distributed
from util.errors import UserError
from util.files import write_text
from util.model_card import ModelCard
from util.nested_tensor import NestedTensor
from util.optim import build_optimizer, build_scheduler
from util.options import parse_options
from util.precision import place
from util.train_state import TrainState

IMPLEMENTATIONS = {"native": "native", "torch": "PyTorch"}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Setting:
    """What one measurement runs: a model (config file and options), sizes, precision. Can be pickled."""

    model: str
    options: dict = field(default_factory=dict)  # of all models
    size: tuple[int, int] = (800, 1066)
    batch: int = 1
    dtype: str = "float32"
    device: torch.device = torch.device("cpu")
    threads: int = 1

    @property
    def amp_dtype(self) -> torch.dtype | None:
        return None if self.dtype == "float32" else DTYPES[self.dtype]

    def config(self) -> Config:
        file, *pairs = self.model.split()
        options = parse_pairs(pairs) | self.options
        return load_config(file, options | {"pretrained_backbone": False})

    def images(self) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        return [torch.randn(3, *self.size, generator=generator).to(self.device) for _ in range(self.batch)]

    def build(self) -> tuple[Detector, SetCriterion]:
        """Model and criterion, as main.py places them."""
        torch.set_num_threads(self.threads)
        torch.manual_seed(0)
        model, criterion, _ = build_model(self.config())
        return place(model, self.device).eval(), criterion.to(self.device)

    def train_state(self, model: nn.Module, steps: int, fused: bool = True) -> TrainState:
        """The state of a training of that many steps before the first. fused: see build_optimizer."""
        optim = parse_options(self.config()).training
        optimizer = build_optimizer(model, optim, fused)
        scaler = GradScaler(self.device.type, enabled=self.amp_dtype == torch.float16)
        return TrainState(model, optimizer, build_scheduler(optimizer, optim, steps), scaler)


def random_detector(config_file: str) -> TorchBackend:
    """The detector of a config file, ready for images, with random weights, on the CPU."""
    options = parse_options(load_config(config_file, {"pretrained_backbone": False}))
    torch.manual_seed(0)
    model, _, postprocessors = build_detector(options)
    card = ModelCard(options.to_dict(), {})
    device = torch.device("cpu")
    return TorchBackend(for_inference(model, device=device), postprocessors["bbox"], card, options, device)


def random_batch(setting: Setting, num_classes: int, seed: int, boxes: tuple[int, int] = (1, 20)
                 ) -> tuple[NestedTensor, list[dict]]:
    """Noise images with the given number of boxes per image (least, most). The batch is on the device: reading data is
    not measured."""
    generator = torch.Generator().manual_seed(seed)
    samples, targets = torch.randn(setting.batch, 3, *setting.size, generator=generator), []
    for index in range(setting.batch):
        count = int(torch.randint(boxes[0], boxes[1] + 1, (), generator=generator))
        centre, size = torch.rand(2, count, 2, generator=generator)
        size = 0.05 + 0.3 * size
        targets.append({"labels": torch.randint(num_classes, (count,), generator=generator), "image_id": index,
                        "boxes": torch.cat([size / 2 + centre * (1 - size), size], -1)})
    moved = [{k: v.to(setting.device) if isinstance(v, Tensor) else v for k, v in t.items()} for t in targets]
    return NestedTensor.from_list(list(samples)).to(setting.device), moved


def take_turns(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each in every round, after one call that is not counted."""
    for run in runs.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def isolated_on_cpu(device: torch.device, function: Callable, *arguments: Any) -> Any:
    """function(*arguments), on a CPU in a new process: there, earlier work would count in its memory."""
    return function(*arguments) if device.type == "cuda" else in_fresh_process(function, *arguments)


def in_fresh_process(function: Callable, *arguments: Any) -> Any:
    """function(*arguments) in a new process, forked from one that has only done the slow imports."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["torchvision", "scipy.optimize"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def describe_run(device: torch.device, dtype: str) -> dict[str, Any]:
    """What the numbers were measured with."""
    chosen = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith("DEFORM_ATTN_")]
    about: dict[str, Any] = {"device": device_name(device), "dtype": dtype, "torch": torch.__version__,
             "command": shlex.join([*chosen, "python", *sys.argv])}
    if device.type == "cuda":
        return about | {"cuda": torch.version.cuda}
    path = cpu_kernels() if native_available("cpu") else torch.backends.cpu.get_cpu_capability().lower()
    return about | {"threads": torch.get_num_threads(), "cpu_path": path}


def summary_line(about: dict) -> str:
    """Device, precision and versions of describe_run, for a heading."""
    path = f", CPU path {about['cpu_path']}" if "cpu_path" in about else f", CUDA {about['cuda']}"
    return f"{about['device']}, {about['dtype']}, torch {about['torch']}{path}"


def check_device(text: str, names: list[str], without: str) -> torch.device:
    """The device, if it is there and has the implementations; `without` is the flag that asks for PyTorch's only."""
    device = init_distributed(text, world_size=1, rank=0, local_rank=0, dist_url="env://")
    if "native" in names and not native_available(device.type):
        raise UserError(f"the compiled operator is not built for {device.type} here. Build it with `pip install "
                        f"--no-build-isolation ./models/ops`, or measure only PyTorch's with {without}")
    return device


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of every benchmark."""
    add_device_flag(parser)
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table")


def write_results(args: argparse.Namespace, text: str, numbers: dict) -> None:
    """Prints the text, and writes it and the numbers to the files of --markdown and --json."""
    print(text)
    if args.json:
        write_text(args.json, json.dumps(numbers, indent=1) + "\n")
    if args.markdown:
        write_text(args.markdown, text)
