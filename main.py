"""Trains, evaluates, tests or benchmarks a detector.

    python main.py -c CONFIG --data PATH                        train
    python main.py -c CONFIG --data PATH --eval --resume CHECKPOINT
    python main.py --data PATH --eval --resume NAME             weights that `python tools/zoo.py` lists
    python main.py -c CONFIG --benchmark --benchmark_only       parameters, GFLOPs, speed; needs no data
    torchrun --nproc_per_node=8 main.py ...                     the same on 8 GPUs
    python main.py --epochs 150 --lr_drop 100 --data PATH       DETR's flags; without -c: SDETR

Configs are Python files and are executed: use only configs that you trust.
"""
import util.threads  # noqa: F401  before torch, whose OpenMP reads it

# isort: split
import argparse
import logging
from pathlib import Path

import torch
from torch import nn

from datasets.adapt import adapt_options
from datasets.coco import CocoDetection
from datasets.coco_eval import log_entries, log_summary, save_results, summarize
from datasets.data import SPLIT_NAMES, DetectionData
from datasets.evaluation.evaluators import chosen
from datasets.loaders import eval_loader
from datasets.transforms import normalized, val_transforms
from engine import Evaluation, evaluate
from measure.model_cost import benchmark
from models import build_detector, compile_parts
from models.criterion import SetCriterion
from models.detector import Detector
from models.parts import make_backbone
from models.postprocess import PostProcess
from trainer import Trainer
from util.checkpoint import checksum, load_weights, read_checkpoint
from util.console import escape_unknown_letters
from util.cpu import available_cpus, keep_freed_memory
from util.distributed import init_distributed, is_main, rank, watch_for_lost_processes
from util.errors import UserError, nearest
from util.files import write_text
from util.logger import setup_logging
from util.loggers.several import DEFAULT, LOGGERS
from util.metrics import LogFile
from util.options import Options, describe_keys, parse_options
from util.outputs import keep_inputs
from util.precision import amp_dtype, place
from util.program import run_program
from util.run_folder import prepare_folder
from util.run_options import DEBUG_BATCHES, RunKind, RunOptions, Start, StartKind, decide_start
from util.short_forms import add_short_forms, dataset_file, refusal

logger = logging.getLogger("main")
DEFAULT_CONFIG = "config/SDETR/sdetr_r50.py"
CACHE = "data_cache"  # folder beside the output folder, for what large data sets hold


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter,
                                     epilog="config keys (--options key=value ...):\n" + describe_keys())
    add = parser.add_argument
    add("--config_file", "-c", help="Python config file; default: the config that the weights to evaluate carry, else "
                                    f"{DEFAULT_CONFIG}")
    add("--options", nargs="+", default=[], metavar="KEY=VALUE", help="override config keys")

    add_short_forms(parser)

    add = parser.add_argument_group("data").add_argument
    add("--dataset_file", default="coco", type=dataset_file, metavar="coco", help="format of the data")
    add("--data", "--coco_path", metavar="PATH",
        help="a data set as COCO 2017, Roboflow's COCO export, YOLO or Pascal VOC lay it out; see docs/data.md")
    add("--fix_size", action="store_true", help="resize all images to the largest size, for debugging")
    add("--strict_data", action="store_true", help="stop the training at an unreadable image")
    add("--num_workers", type=int, default=min(8, available_cpus()), help="number of data-loading processes")

    add = parser.add_argument_group("run").add_argument
    add("--output_dir", help="default: outputs/<config name>; without -c, or with the config.py of a run, that of the "
                             "weights to evaluate, after their folder's for a checkpoint")
    add("--note", default="", help="a remark, saved in run.json")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda, cuda:N or cpu")
    add("--seed", type=int, default=42)
    add("--amp", action="store_true", help="mixed precision; see the config keys amp and amp_dtype")
    add("--find_batch_size", action="store_true",
        help="split batch_size * grad_accum_steps into the largest batches that fit into memory")
    add("--compile", nargs="?", const="inductor", metavar="BACKEND",
        help="torch.compile backbone, encoder and decoder for a training, slow at the start; with --benchmark: measure "
             "detection compiled, too")
    add("--debug", action="store_true",
        help=f"stop every epoch and evaluation after {DEBUG_BATCHES} batches")
    add("--find_unused_params", action="store_true", help="let DDP tolerate parameters without gradient")
    add("--logger", nargs="+", choices=LOGGERS, metavar="NAME",
        help=f"where the training is shown, one or several of {', '.join(LOGGERS)}; default: {DEFAULT[0]}")

    add = parser.add_argument_group("weights").add_argument
    add("--resume", metavar="FILE|URL|NAME|auto",
        help="checkpoint to continue a training from, or to evaluate (`python tools/zoo.py` lists the names); auto: "
             "the one in the output folder, if any")
    add("--pretrain_model_path", metavar="FILE|URL|NAME", help="start a training from these weights")
    add("--finetune_ignore", nargs="+", metavar="WORD",
        help="with --pretrain_model_path: leave out tensors whose names contain one of the words")
    add("--start_epoch", type=int, default=0, help="first epoch of a training from scratch")

    add = parser.add_argument_group("instead of training").add_argument
    add("--eval", action="store_true", help="evaluate on val2017")
    add("--test", action="store_true",
        help="detect objects on test2017 (annotations/image_info_test-dev2017.json) and save a results file")
    add("--save_results", action="store_true", help="with --eval: save the detections as a results file")
    add("--save_log", action="store_true",
        help="with --eval: append the numbers to eval/log.txt and write the tables to eval/table.txt")
    add("--summary", action="store_true",
        help="with --eval: write summary.md, with error analysis and plots, into the output folder")
    add("--per_class", action="store_true", help="print AP per class after each evaluation")
    add("--benchmark", action="store_true", help="print parameters, GFLOPs, speed and memory")
    add("--benchmark_only", action="store_true", help="with --benchmark: exit afterwards")
    add("--benchmark_size", type=int, nargs=2, metavar=("H", "W"),
        help="benchmark on one image of this size (default without --data: 800 1066)")

    add = parser.add_argument_group("processes; torchrun and torch.distributed.launch set these").add_argument
    add("--world_size", type=int, default=1, help="number of processes, without a launcher")
    add("--rank", type=int, default=0, help="index of this process, without a launcher")
    add("--local_rank", "--local-rank", type=int, default=0, help="GPU index of this process on its node")
    add("--dist_url", default="env://", help="address where the processes meet, such as tcp://HOST:PORT")
    add("--dist_timeout", type=float, default=30, metavar="MINUTES",
        help="how long to wait for other processes before they count as lost")
    return parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line. A flag that is unknown ends the program with the nearest known one, a flag of the
    published code that is refused with the reason."""
    parser = get_args_parser()
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        reason = refusal(unknown[0])
        if reason is not None:
            parser.error(f"{unknown[0]}: {reason}")
        parser.error(f"unknown argument {unknown[0]}.{nearest(unknown[0], parser._option_string_actions)}")
    return args


@watch_for_lost_processes()
def main(args: argparse.Namespace) -> int:
    """Returns the exit code."""
    run = RunOptions.from_arguments(args, Path(__file__).parent / DEFAULT_CONFIG)
    device = init_distributed(args.device, args.world_size, args.rank, args.local_rank, args.dist_url,
                              args.dist_timeout)
    setup_logging(rank())
    if device.type == "cpu":
        keep_freed_memory()
    start = decide_start(run)
    checkpoint = read_checkpoint(start.checkpoint) if start.checkpoint and start.kind is StartKind.WEIGHTS else None
    if args.config_file is None:
        run = run.with_config_of(checkpoint or {})
        logger.info("no -c: the config is %s", f"that of {run.config_file}" if run.config else DEFAULT_CONFIG)
    options = parse_options(run.load_config())
    data = open_data(run, options)
    options = adapt_options(options, data, run.kind.split, checkpoint)
    chosen(options.evaluation.evaluator)  # an error should come before the work
    if run.start_epoch >= options.training.epochs:
        raise UserError(f"--start_epoch {run.start_epoch} leaves none of the {options.training.epochs} epochs (from 0)")

    backbone_weights = needs_imagenet(run, options, start)
    torch.manual_seed(run.seed)  # the same on every process while the model is built
    model, criterion, postprocessors = build_detector(options.replaced(pretrained_backbone=backbone_weights))
    place(model, device)
    criterion.to(device)
    torch.manual_seed(run.seed + rank())
    if checkpoint is not None:
        load_weights(model, checkpoint, ema=options.training.use_ema, shortened=True)

    if run.benchmark and is_main():
        run_benchmark(run, options, data, model, device)
    if run.kind is RunKind.BENCHMARK or data is None:  # without data there is nothing but a benchmark
        return 0
    if run.kind is RunKind.TRAIN:
        if run.compile:
            compile_parts(model, run.compile)
        return Trainer(run, options, start, data, device).train(model, criterion, postprocessors["bbox"])
    if run.kind is RunKind.TEST:
        return run_test(run, options, data, model, postprocessors["bbox"], device)
    return run_evaluation(run, options, data, model, criterion, postprocessors["bbox"], device)


def open_data(run: RunOptions, options: Options) -> DetectionData | None:
    """None if no data is named, which only a benchmark can do without."""
    if run.kind is RunKind.BENCHMARK and run.data is None:
        return None
    data = DetectionData(run.data, options.data, run.folder.parent / CACHE)
    keep_inputs([run.folder, run.folder.parent / CACHE],
                [folder for split in SPLIT_NAMES if split in data.sources for folder in data.sources[split].folders])
    if run.benchmark and not run.benchmark_size:
        data.split("val")  # by every process, before the main one alone looks at it
    return data


def needs_imagenet(run: RunOptions, options: Options, start: Start) -> bool:
    """Whether the backbone starts from ImageNet weights: a checkpoint makes them needless, unless --finetune_ignore
    leaves out some of its backbone."""
    if not options.backbone.pretrained_backbone or start.kind is not StartKind.PRETRAINED or not run.finetune_ignore:
        return options.backbone.pretrained_backbone and start.imagenet_backbone
    names = make_backbone(options.replaced(pretrained_backbone=False)).state_dict()
    return any(word in f"backbone.{name}" for name in names for word in run.finetune_ignore)


def run_benchmark(run: RunOptions, options: Options, data: DetectionData | None, model: Detector,
                  device: torch.device) -> None:
    """--benchmark: prints the model's cost on val images, or on noise."""
    if data is not None and not run.benchmark_size:
        dataset = CocoDetection(data, "val", val_transforms(options.data, run.fix_size))
        images = [normalized(dataset[i][0]) for i in range(min(100, len(dataset)))]
    else:
        generator = torch.Generator().manual_seed(run.seed)
        images = [torch.randn(3, *(run.benchmark_size or (800, 1066)), generator=generator)]
    print(benchmark(model, images, device, amp_dtype(options.training, run.amp, device), run.compile), flush=True)


def run_test(run: RunOptions, options: Options, data: DetectionData, model: nn.Module, postprocess: PostProcess,
             device: torch.device) -> int:
    """--test: a results file for images without annotations."""
    dataset = CocoDetection(data, "test", val_transforms(options.data, run.fix_size))
    evaluation = evaluate_dataset(run, options, dataset, model, None, postprocess, device)
    if is_main():
        write_results(run, evaluation)
    return 0


def run_evaluation(run: RunOptions, options: Options, data: DetectionData, model: nn.Module, criterion: SetCriterion,
                   postprocess: PostProcess, device: torch.device) -> int:
    """--eval: COCO's numbers on the val images, and the files that were asked for."""
    dataset = CocoDetection(data, "val", val_transforms(options.data, run.fix_size))
    evaluation = evaluate_dataset(run, options, dataset, model, criterion, postprocess, device)
    if not is_main():
        return 0
    if run.save_results:
        write_results(run, evaluation)
    summary = summarize(dataset.coco, evaluation.detections, options.evaluation)
    log_summary(summary, run.per_class)
    if run.save_log:
        (run.folder / "eval").mkdir(exist_ok=True)
        losses = {f"test_{name}": loss for name, loss in evaluation.losses.items()}
        LogFile(run.folder / "eval" / "log.txt").append(
            losses | log_entries(summary) | {"resume": run.resume})
        write_text(run.folder / "eval" / "table.txt", f"{summary.table}\n{summary.class_table}\n")
    if run.summary:
        from reports.conditions import conditions
        from reports.summary import write_summary  # importing matplotlib takes a second

        how = conditions(options, amp_dtype(options.training, run.amp, device), run.fix_size, run.max_batches)
        facts = {"checkpoint": run.resume, "config": run.config_file, "data": data.root}
        logger.info("summary\n%s", write_summary(run.folder, summary, dataset.folder, run.folder / "log.txt", facts,
                                                 checksum(model.state_dict()), how))
    return 0


def evaluate_dataset(run: RunOptions, options: Options, dataset: CocoDetection, model: nn.Module,
                     criterion: SetCriterion | None, postprocess: PostProcess, device: torch.device) -> Evaluation:
    if is_main():
        prepare_folder(run.folder)
    loader = eval_loader(dataset, options.data.eval_batch_size, run.num_workers)
    return evaluate(model, criterion, postprocess, loader, device,
                    amp_dtype=amp_dtype(options.training, run.amp, device), max_batches=run.max_batches)


def write_results(run: RunOptions, evaluation: Evaluation) -> None:
    path = run.folder / "results" / f"{run.kind.split}_detections.json"
    count = save_results(path, evaluation.detections)
    logger.info("wrote %d detections to %s", count, path)


if __name__ == "__main__":
    escape_unknown_letters()
    try:
        run_program(main, parse_args())
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
