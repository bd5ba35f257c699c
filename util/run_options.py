"""What a run of main.py does, and what it starts from: the command line, checked, as one frozen value."""
import argparse
import dataclasses
import enum
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from util.config import Config, load_config, override, parse_pairs
from util.distributed import all_gather
from util.errors import UserError
from util.loggers.several import check_installed
from util.outputs import name_of_weights
from util.short_forms import expand_short_forms

LATEST = "checkpoint.pth"  # the checkpoint in the output folder that --resume auto continues
LEAST = {"num_workers": 0, "start_epoch": 0, "seed": 0, "world_size": 1, "rank": 0, "local_rank": 0}
MAX_SEED = 2**32 - 1  # NumPy's
DATA_PLACES = {f"{split}_{what}" for split in ("train", "val", "test") for what in ("images", "annotations")}
DEBUG_BATCHES = 16  # of every epoch and evaluation, with --debug


class RunKind(enum.Enum):
    TRAIN = "train"
    EVAL = "eval"
    TEST = "test"
    BENCHMARK = "benchmark"  # only; --benchmark without --benchmark_only adds the table to another kind

    @classmethod
    def of(cls, args: argparse.Namespace) -> "RunKind":
        if args.benchmark and args.benchmark_only:
            return cls.BENCHMARK
        return cls.TEST if args.test else cls.EVAL if args.eval else cls.TRAIN

    @property
    def split(self) -> str:
        """The part of the data set that num_classes='auto' and image_size look at."""
        return {RunKind.TRAIN: "train", RunKind.TEST: "test"}.get(self, "val")


@dataclass(frozen=True)
class RunOptions:
    """main.py's flags except those of the process group; `python main.py --help` explains them."""

    kind: RunKind
    config_file: Path
    config_overrides: Mapping[str, Any]  # --options and the short forms of config keys
    folder: Path
    arguments: Mapping[str, Any]  # all flags, for run.json
    config: Mapping[str, Any] | None  # that of the weights config_file, in place of a file

    data: str | None
    num_workers: int
    fix_size: bool
    strict_data: bool

    seed: int
    amp: bool
    find_batch_size: bool
    compile: str | None
    debug: bool
    find_unused_params: bool
    logger: list[str] | None

    resume: str | None
    pretrain_model_path: str | None
    finetune_ignore: list[str] | None
    start_epoch: int

    save_results: bool
    save_log: bool
    summary: bool
    per_class: bool
    benchmark: bool
    benchmark_size: list[int] | None

    @classmethod
    def from_arguments(cls, args: argparse.Namespace, default_config: Path) -> "RunOptions":
        """Raises UserError for flags that contradict each other or would have no effect."""
        kind = RunKind.of(args)
        _check(args, kind)
        check_installed(args.logger or ())
        config_file = Path(args.config_file or default_config)
        same = {field.name for field in dataclasses.fields(cls)} & set(vars(args))
        return cls(
            kind=kind, config_file=config_file,
            config_overrides=parse_pairs(expand_short_forms(args) + args.options),
            folder=Path(args.output_dir or _default_folder(config_file, kind, args.resume)),
            arguments=vars(args) | {"config_file": config_file}, config=None,
            **{name: getattr(args, name) for name in same - {"config_file"}})

    def with_config_of(self, checkpoint: Mapping[str, Any]) -> "RunOptions":
        """The same run with the config that the weights of --resume carry, if they do. They do not say where data
        lies."""
        if not checkpoint.get("config"):
            return self
        source = Path(str(self.resume))
        folder = Path(self.arguments["output_dir"] or Path("outputs") / name_of_weights(source))
        config = {name: value for name, value in checkpoint["config"].items() if name not in DATA_PLACES}
        return dataclasses.replace(self, config=config, config_file=source, folder=folder)

    def load_config(self) -> Config:
        """Raises UserError for a config file that is missing or does not run."""
        if self.config is None:
            return load_config(self.config_file, self.config_overrides)
        return override(Config(self.config), self.config_overrides, str(self.config_file))

    @property
    def max_batches(self) -> int | None:
        """How many batches an epoch or evaluation has at most; None: all."""
        return DEBUG_BATCHES if self.debug else None


def _default_folder(config_file: Path, kind: RunKind, weights: str | None) -> Path:
    """A run's own config.py (see util.run_folder.record_run) stands for that run, since all of them have this name:
    a training continues there, an evaluation goes by the name of its weights."""
    if config_file.name != "config.py" or not (config_file.parent / "run.json").is_file():
        return Path("outputs") / config_file.stem
    return config_file.parent if kind is RunKind.TRAIN or not weights else Path("outputs") / name_of_weights(weights)


def _check(args: argparse.Namespace, kind: RunKind) -> None:
    trains, benchmark_only = kind is RunKind.TRAIN, kind is RunKind.BENCHMARK
    mistakes = [
        *((getattr(args, name) < least, f"--{name} must be at least {least}") for name, least in LEAST.items()),
        (args.seed > MAX_SEED, f"--seed must be at most {MAX_SEED}"),
        (not 0 < args.dist_timeout < math.inf, "--dist_timeout must be a positive number of minutes"),
        (args.benchmark_size and min(args.benchmark_size) < 1, "--benchmark_size must be at least 1 px a side"),
        (args.benchmark_only and not args.benchmark, "--benchmark_only needs --benchmark"),
        (args.benchmark_size and not args.benchmark, "--benchmark_size needs --benchmark"),
        (args.eval and args.test, "--eval and --test exclude each other"),
        (args.save_results and not args.eval, "--save_results needs --eval; --test always saves its results"),
        (args.save_log and not args.eval, "--save_log needs --eval; a training always writes log.txt"),
        (args.summary and not args.eval, "--summary needs --eval"),
        (args.finetune_ignore and not args.pretrain_model_path, "--finetune_ignore needs --pretrain_model_path"),
        (args.pretrain_model_path and not trains, "--pretrain_model_path is for training; --resume chooses the "
                                                  "weights to evaluate"),
        (args.pretrain_model_path and args.resume not in (None, "auto"), "--pretrain_model_path starts a training and "
                                                                         "--resume continues one: choose"),
        (args.start_epoch and (args.resume or not trains), "--start_epoch is for a training from scratch; --resume "
                                                           "knows its epoch"),
        ((args.eval or args.test) and not args.resume and not benchmark_only, "--eval and --test need --resume FILE"),
        (args.resume == "auto" and not trains, "--resume auto is for training; name the checkpoint"),
        (args.per_class and (args.test or benchmark_only), "--per_class needs annotations to evaluate with"),
        ((args.find_unused_params or args.note or args.strict_data or args.find_batch_size or args.logger)
         and not trains,
         "--find_unused_params, --note, --strict_data, --find_batch_size and --logger are for training"),
        (args.compile and not trains and not args.benchmark, "--compile is for training and --benchmark"),
        (args.rank and args.world_size == 1 and "RANK" not in os.environ, "--rank needs --world_size"),
    ]
    for wrong, message in mistakes:
        if wrong:
            raise UserError(message)


class StartKind(enum.Enum):
    FRESH = "new weights"
    PRETRAINED = "a new training from the weights of a checkpoint"
    RESUMED = "a training that continues where its checkpoint was written"
    WEIGHTS = "the weights of a checkpoint, to evaluate or to benchmark"


@dataclass(frozen=True)
class Start:
    """What a run starts from."""

    kind: StartKind
    checkpoint: str | None = None  # file or URL; None if kind is FRESH
    imagenet_backbone: bool = False  # whether ImageNet weights are of use: nothing overwrites them


def decide_start(run: RunOptions) -> Start:
    """What --resume, --pretrain_model_path and the output folder mean for this run; the same on every process.

    Raises UserError if a training would overwrite another one.
    """
    if run.kind is not RunKind.TRAIN:
        return Start(StartKind.FRESH if run.resume is None else StartKind.WEIGHTS, run.resume)
    latest = run.folder / LATEST
    found = all_gather(latest.is_file())
    if len(set(found)) > 1:
        raise UserError(f"some processes see {latest} and others do not: nodes must share the output folder")
    if run.resume is None and found[0]:
        raise UserError(f"{run.folder} already holds a training. Pass --resume auto to continue it, --resume FILE, or "
                        "another --output_dir")
    others = sorted(run.folder.glob("checkpoint*.pth"))
    if run.resume in (None, "auto") and any(all_gather(bool(others))) and not found[0]:
        raise UserError(f"{run.folder} holds {', '.join(path.name for path in others) or 'checkpoints'}, which a new "
                        f"training would replace, but no {LATEST} to continue: pass --resume FILE or another "
                        "--output_dir")
    if run.resume not in (None, "auto"):
        return Start(StartKind.RESUMED, run.resume)
    if found[0]:
        return Start(StartKind.RESUMED, str(latest))
    if run.pretrain_model_path:
        return Start(StartKind.PRETRAINED, run.pretrain_model_path, imagenet_backbone=bool(run.finetune_ignore))
    return Start(StartKind.FRESH, imagenet_backbone=True)
