"""The mean of the weights of several checkpoints of a training, which can be better than each of them.

    python tools/average_checkpoints.py RUN_FOLDER --best 3
    python tools/average_checkpoints.py CHECKPOINT CHECKPOINT ... --output FILE

--best takes those of the best val AP among the checkpoints that the training kept: see the config keys keep_best and
save_checkpoint_interval. Where a training evaluates the moving average of its weights (use_ema), that is averaged. The
result keeps config and class names: `main.py --eval --resume`, --pretrain_model_path and all tools read it. Checkpoints
of trainings that started from different weights have no useful mean.
"""
import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from common import run_tool, tool_parser
from reports.conditions import conditions, differences
from util.averaging import mean_weights
from util.checkpoint import model_state, read_checkpoint, write_checkpoint
from util.config import Config
from util.errors import UserError
from util.finished_epoch import FinishedEpoch
from util.options import Options, parse_options

NAME = "averaged.pth"  # in the folder of the training


def best_checkpoints(folder: Path, count: int) -> list[Path]:
    """The `count` kept checkpoints of the best val AP, the best first, of equal ones the earlier. Files of the same
    epoch count once. Raises UserError if there are fewer."""
    found: dict[str, tuple[float, int, Path]] = {}
    for path in sorted(folder.glob("checkpoint*.pth"), key=lambda path: path.stem[-1].isdigit()):  # numbers have it
        checkpoint = read_checkpoint(path)
        finished = FinishedEpoch.of(checkpoint, str(path))
        if finished is not None and finished.ap is not None:
            found[checkpoint["log"]] = (-finished.ap, finished.record["epoch"], path)
    if len(found) < count:
        raise UserError(f"{folder} holds {len(found)} checkpoints of different epochs with a val AP, not {count}. A "
                        "training keeps more with --options keep_best=3 or a smaller save_checkpoint_interval")
    return [path for *_, path in sorted(found.values())[:count]]


def average(paths: Sequence[Path]) -> dict[str, Any]:
    """The content of a checkpoint: mean weights, config and class names, and in "averaged" which epochs they are of.

    Raises UserError for checkpoints without config, and for those of different detectors or classes.
    """
    first: dict[str, Any] = {}
    sources: list[dict[str, Any]] = []

    def states() -> Iterator[tuple[str, dict[str, Tensor]]]:
        for path in paths:
            checkpoint = read_checkpoint(path)
            if "config" not in checkpoint or "class_names" not in checkpoint:
                raise UserError(f"{path} holds no config and class names: it is no checkpoint of a training by main.py")
            try:
                options = parse_options(Config(checkpoint["config"]))
            except UserError as error:
                raise UserError(f"{path}: {error}") from error
            if not first:
                first.update(path=path, options=options, config=checkpoint["config"],
                             class_names=checkpoint["class_names"])
            _check_same_detector(first, path, options, checkpoint["class_names"])
            finished = FinishedEpoch.of(checkpoint, str(path))
            sources.append({"file": str(path), "epoch": checkpoint.get("epoch"), "ap": finished and finished.ap})
            yield str(path), model_state(checkpoint, ema=options.training.use_ema)

    weights = mean_weights(states())
    return {"model": weights, "config": first["config"], "class_names": first["class_names"], "averaged": sources}


def _check_same_detector(first: dict[str, Any], path: Path, options: Options, class_names: dict[int, str]) -> None:
    """What only a training reads may differ."""
    changed = differences(conditions(first["options"]), options)
    before, now = first["options"].training.use_ema, options.training.use_ema
    changed += [f"use_ema={before} instead of {now}"] * (before != now)
    changed += ["other class names"] * (first["class_names"] != class_names)
    if changed:
        raise UserError(f"{first['path']} is of another detector than {path}: {', '.join(changed)}")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = tool_parser(__doc__)
    parser.add_argument("sources", nargs="+", type=Path, metavar="RUN_FOLDER|CHECKPOINT")
    parser.add_argument("--best", type=int, metavar="N", help="of a folder: how many checkpoints; default: 3")
    parser.add_argument("--output", type=Path, metavar="FILE", help=f"default: {NAME} in the folder")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    from_folder = len(args.sources) == 1 and args.sources[0].is_dir()
    if not from_folder and (args.best is not None or args.output is None):
        raise UserError("--best is for the folder of a training; for single checkpoints, --output says where the mean "
                        "is written")
    count = 3 if args.best is None else args.best
    if (count if from_folder else len(args.sources)) < 2:
        raise UserError("a mean needs at least two checkpoints")
    twice = [path for path in args.sources if [*map(Path.resolve, args.sources)].count(path.resolve()) > 1]
    if twice:
        raise UserError(f"{twice[0]} is there twice")
    target = args.output or args.sources[0] / NAME
    if target.exists():
        raise UserError(f"{target} exists already: choose another --output")
    content = average(best_checkpoints(args.sources[0], count) if from_folder else args.sources)
    write_checkpoint(content, target)
    for source in content["averaged"]:
        ap = "" if source["ap"] is None else f", val AP {source['ap']:.3f}"
        print(f"{source['file']}: epoch {source['epoch']}{ap}")
    print(f"{target}: the mean of these {len(content['averaged'])}\npython main.py --eval --data DIR --resume {target}")


if __name__ == "__main__":
    run_tool(main, parse_args())
