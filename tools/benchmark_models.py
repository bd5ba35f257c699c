"""Speed and memory of whole detectors with the compiled operators and with PyTorch's, in inference and in training.

    python tools/benchmark_models.py
    python tools/benchmark_models.py --device cuda --batch 1 8 --dtype float32 bfloat16 --json models.json
    python tools/benchmark_models.py --device cuda --dtype bfloat16 --models --train 60

Weights and images are random: only shapes matter. A model is a config file, followed by options in the same quotes.
"""
import argparse
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from common import add_options_flag, add_size_flag, run_tool, tool_parser
from measure.memory import measure_memory
from measure.speed import measure_speed
from measuring import (
    DTYPES,
    IMPLEMENTATIONS,
    Setting,
    add_common_arguments,
    check_device,
    describe_run,
    isolated_on_cpu,
    random_batch,
    summary_line,
    write_results,
)
from models.ops import implementation
from util.config import parse_pairs
from util.cpu import keep_freed_memory
from util.markdown import table, three_digits
from util.metrics import Meters
from util.options import parse_options

MODELS = ["config/LiteDINO/r50_h3l1_2p1x3.py", "config/LiteDINO/r50_h3l1_6p1x1.py",
          "config/LiteDINO/r50_h2l2_2p1x3.py", "config/DINO/DINO_4scale.py num_expansion=None"]
WARM_UP = 3  # training steps before those that are timed
BATCHES = 4  # different training batches, used in turn


def infer(setting: Setting, names: list[str], seconds: float, rounds: int) -> dict:
    """A record of one model. The implementations take turns of `seconds` each; the fastest turn counts."""
    model, images = setting.build()[0], setting.images()
    own = model if setting.device.type == "cuda" else None  # another process builds its own
    memory = {name: isolated_on_cpu(setting.device, inference_memory, setting, name, own) for name in names}
    fps: dict[str, list[float]] = {name: [] for name in names}
    detect = partial(forward, setting, model)
    for _ in range(rounds):
        for name in names:
            with implementation(name):
                speed = measure_speed(detect, images, setting.batch, setting.device, seconds)
                fps[name].append(speed.fps)
    return {name: {"images_per_s": max(fps[name]), "ms_per_image": 1e3 / max(fps[name]), **memory[name]}
            for name in names}


def inference_memory(setting: Setting, name: str, model: nn.Module | None) -> dict[str, float | None]:
    """Peak of one batch in MB: total ("mb": the process on a CPU, the allocations on CUDA) and beyond the weights."""
    images, detect = setting.images(), partial(forward, setting, model or setting.build()[0])
    with implementation(name):
        detect([image[:, :128, :128] for image in images[:1]])  # loads libraries; too small to raise the peak
        extra, peak = measure_memory(lambda: detect(images), setting.device)
    return {"mb": peak, "mb_extra": extra}


@torch.no_grad()
def forward(setting: Setting, model: nn.Module, images: list[Tensor]) -> None:
    with torch.autocast(setting.device.type, setting.amp_dtype, enabled=setting.amp_dtype is not None):
        model(images)


def train(setting: Setting, name: str, steps: int) -> dict:
    """A record of `steps` training steps after WARM_UP, with the project's own step, criterion and optimizer."""
    from engine import NonFiniteError, train_one_epoch  # reads COCO's tools, which inference can do without

    if setting.device.type == "cpu":
        keep_freed_memory()
    (model, criterion), options = setting.build(), parse_options(setting.config())
    state = setting.train_state(model, WARM_UP + steps)
    batches = [random_batch(setting, int(options.data.num_classes), seed) for seed in range(BATCHES)]

    def run(count: int) -> tuple[float, float]:
        """Mean loss, and seconds per step."""
        state.step, state.meters = 0, Meters()
        begin = time.perf_counter()
        train_one_epoch(model, criterion, [batches[i % BATCHES] for i in range(count)], state, options.training,
                        setting.device, Path(folder), amp_dtype=setting.amp_dtype)
        return state.meters.means()["loss"], (time.perf_counter() - begin) / count

    results: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder, implementation(name):
        try:
            results.append(run(WARM_UP))
            peak = measure_memory(lambda: results.append(run(steps)), setting.device)[1]
        except NonFiniteError as error:
            return {"finite": False, "error": str(error), "s_per_step": None, "mb": None, "loss": None}
    (first, _), (loss, seconds) = results
    return {"finite": True, "s_per_step": seconds, "mb": peak, "loss_warm_up": first, "loss": loss}


def report_inference(records: list[dict], names: list[str], rounds: int) -> str:
    columns = ["model", "dtype", "batch"]
    columns += [f"{unit} {IMPLEMENTATIONS[name]}" for unit in ("ms/image", "images/s", "MB") for name in names]
    rows = [[record["model"], record["dtype"], str(record["batch"]),
             *(three_digits(record[name][key]) for key in ("ms_per_image", "images_per_s", "mb") for name in names)]
            for record in records]
    if len(names) == 2:
        columns.append("ratio")
        rows = [[*row, three_digits(record["ratio"])] for row, record in zip(rows, records)]
    return f"{table(columns, rows)}\n\nBest of {rounds}; MB: peak with the weights; ratio: time PyTorch / native.\n"


def report_training(records: list[dict], names: list[str], steps: int) -> str:
    rows = [[record["model"], record["dtype"], str(record["batch"]), IMPLEMENTATIONS[name],
             *(three_digits(record[name][key]) for key in ("s_per_step", "mb", "loss"))]
            for record in records for name in names]
    columns = ["training", "dtype", "batch", "operator", "s/step", "MB", "mean loss"]
    return f"{table(columns, rows)}\n\n{steps} steps after {WARM_UP}; MB: total peak.\n"


def parse_args() -> argparse.Namespace:
    parser = tool_parser(__doc__)
    add_common_arguments(parser)
    add_options_flag(parser)
    add_size_flag(parser)
    add = parser.add_argument
    add("--models", nargs="*", default=MODELS, metavar="'CONFIG KEY=VALUE ...'", help="for inference; default: the "
        "three Lite-DINO R50 and DINO")
    add("--impl", nargs="+", choices=IMPLEMENTATIONS, default=list(IMPLEMENTATIONS), help="default: both")
    add("--dtype", nargs="+", choices=DTYPES, default=["float32"], help="half precision means autocast")
    add("--batch", nargs="+", type=int, default=[1], help="images at once in inference")
    add("--seconds", type=float, default=1.0, help="length of a turn, at least three batches; default: %(default)s")
    add("--rounds", type=int, default=3, help="turns of each implementation; default: %(default)s")
    add("--train", type=int, default=0, metavar="STEPS", help="also train the first model (with --models and no "
        "name: the first of the default ones) for this many steps")
    add("--train_batch", type=int, default=2, help="images per training step; default: %(default)s")
    return parser.parse_args()


def main(args: argparse.Namespace) -> int:
    """Returns the exit code: 1 if a training's loss did not stay finite."""
    device = check_device(args.device, args.impl, "--impl torch")
    if args.threads:
        torch.set_num_threads(args.threads)
    if device.type == "cpu":
        keep_freed_memory()  # as main.py does
    base = Setting("", parse_pairs(args.options), tuple(args.size), device=device, threads=torch.get_num_threads())
    names = list(dict.fromkeys(args.impl))
    about = describe_run(device, " and ".join(args.dtype)) | {"size": args.size, "rounds": args.rounds,
                                                              "train_steps": args.train}
    inference, training = [], []
    for model in args.models:
        for dtype in args.dtype:
            for batch in args.batch:
                print(f"{model}, {dtype}, batch {batch} ...", file=sys.stderr, flush=True)
                record = {"model": model, "dtype": dtype, "batch": batch}
                record |= infer(replace(base, model=model, batch=batch, dtype=dtype), names, args.seconds, args.rounds)
                if len(names) == 2:
                    record["ratio"] = record["torch"]["ms_per_image"] / record["native"]["ms_per_image"]
                inference.append(record)
    for dtype in args.dtype if args.train else []:
        model = (args.models or MODELS)[0]
        print(f"training of {model}, {dtype} ...", file=sys.stderr, flush=True)
        setting = replace(base, model=model, batch=args.train_batch, dtype=dtype)
        training.append({"model": model, "dtype": dtype, "batch": args.train_batch}
                        | {name: isolated_on_cpu(device, train, setting, name, args.train) for name in names})
    parts = [f"{summary_line(about)}; {args.size[0]}x{args.size[1]} px\n"]
    if inference:
        parts.append(report_inference(inference, names, args.rounds))
    if training:
        parts.append(report_training(training, names, args.train))
    text = "\n".join([*parts, f"`{about['command']}`\n"])
    write_results(args, text, about | {"inference": inference, "training": training})
    failed = [record[name]["error"] for record in training for name in names if not record[name]["finite"]]
    for error in failed:
        print(f"error: {error}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    run_tool(main, parse_args())
