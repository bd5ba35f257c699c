"""Trains, evaluates, tests and benchmarks a detector.

    python main.py -c CONFIG --coco_path DIR                    train
    python main.py -c CONFIG --coco_path DIR --eval --resume CHECKPOINT
    python main.py -c CONFIG --benchmark --benchmark_only       parameters, GFLOPs, speed; needs no data
    torchrun --nproc_per_node=8 main.py ...                     the same on 8 GPUs
    python main.py --epochs 150 --lr_drop 100 --coco_path DIR   DETR's flags; without -c: SDETR

A config is a Python file and is executed: use only configs that you trust.
"""
import argparse
import logging
import os
import sys
from pathlib import Path

import torch
from torch import nn

from datasets.adapt import adapt_config
from datasets.coco import CocoDetection
from datasets.coco_eval import CocoEvaluator
from datasets.loaders import eval_loader, worker_crash_as_user_error
from datasets.transforms import val_transforms
from engine import evaluate
from measure.model_cost import benchmark
from models import build_model, compile_parts
from trainer import DEBUG_BATCHES, Trainer, report
from util.checkpoint import load_weights, read_checkpoint
from util.config import load_config, parse_pairs
from util.cpu import available_cpus, keep_freed_memory
from util.distributed import init_distributed, is_main, rank, watch_for_lost_processes
from util.errors import UserError, nearest
from util.logger import setup_logging
from util.metrics import LogFile
from util.options import Options, describe_keys, parse_options
from util.precision import amp_dtype, place
from util.run_folder import prepare_folder
from util.short_forms import add_short_forms, expand_short_forms

logger = logging.getLogger("main")
DEFAULT_CONFIG = "config/SDETR/sdetr_r50.py"


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter,
                                     epilog="config keys (--options key=value ...):\n" + describe_keys())
    add = parser.add_argument
    add("--config_file", "-c", help=f"Python config file; default: {DEFAULT_CONFIG}")
    add("--options", nargs="+", default=[], metavar="KEY=VALUE", help="override config keys")

    add_short_forms(parser)

    data = parser.add_argument_group("data")
    data.add_argument("--dataset_file", default="coco", choices=["coco"], help="format of the data")
    data.add_argument("--coco_path", help="folder with train2017/, val2017/ and annotations/")
    data.add_argument("--fix_size", action="store_true", help="resize every image to the largest size, for debugging")
    data.add_argument("--strict_data", action="store_true", help="training stops at an unreadable image")
    data.add_argument("--num_workers", type=int, default=min(8, available_cpus()), help="data-loading processes")

    run = parser.add_argument_group("run")
    run.add_argument("--output_dir", help="default: outputs/<config name>")
    run.add_argument("--note", default="", help="a remark, saved with the run in run.json")
    run.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda, cuda:N or cpu")
    run.add_argument("--seed", type=int, default=42)
    run.add_argument("--amp", action="store_true", help="mixed precision; see the config keys amp and amp_dtype")
    run.add_argument("--find_batch_size", action="store_true",
                     help="split batch_size * grad_accum_steps into the largest batches that fit into memory")
    run.add_argument("--compile", nargs="?", const="inductor", metavar="BACKEND",
                     help="torch.compile backbone, encoder and decoder; slow to start, and at every new image size")
    run.add_argument("--debug", action="store_true",
                     help=f"stop every epoch and evaluation after {DEBUG_BATCHES} batches")
    run.add_argument("--find_unused_params", action="store_true", help="DDP tolerates parameters without gradient")

    start = parser.add_argument_group("weights")
    start.add_argument("--resume", metavar="FILE|URL|auto",
                       help="go on with a training, or the weights to evaluate; auto: the output folder's checkpoint, "
                            "if there is one")
    start.add_argument("--pretrain_model_path", metavar="FILE|URL", help="start a training from these weights")
    start.add_argument("--finetune_ignore", nargs="+", metavar="WORD",
                       help="with --pretrain_model_path: leave out tensors whose name contains a word")
    start.add_argument("--start_epoch", type=int, default=0, help="first epoch of a training from scratch")

    what = parser.add_argument_group("instead of training")
    what.add_argument("--eval", action="store_true", help="evaluate on val2017")
    what.add_argument("--test", action="store_true",
                      help="detect on test2017 (annotations/image_info_test-dev2017.json) and save a results file")
    what.add_argument("--save_results", action="store_true", help="with --eval: save the detections as a results file")
    what.add_argument("--save_log", action="store_true", help="with --eval: append the numbers to eval/log.txt and "
                                                              "write the tables to eval/table.txt")
    what.add_argument("--summary", action="store_true",
                      help="with --eval: write summary.md, with error analysis and plots, into the output folder")
    what.add_argument("--per_class", action="store_true", help="print AP by class after an evaluation")
    what.add_argument("--benchmark", action="store_true", help="print parameters, GFLOPs, speed and memory")
    what.add_argument("--benchmark_only", action="store_true", help="with --benchmark: then exit")
    what.add_argument("--benchmark_size", type=int, nargs=2, metavar=("H", "W"),
                      help="benchmark one image of this size (default without --coco_path: 800 1066)")

    dist = parser.add_argument_group("processes; torchrun and torch.distributed.launch set these")
    dist.add_argument("--world_size", type=int, default=1, help="number of processes, without a launcher")
    dist.add_argument("--rank", type=int, default=0, help="number of this process, without a launcher")
    dist.add_argument("--local_rank", "--local-rank", type=int, default=0, help="GPU of this process on its node")
    dist.add_argument("--dist_url", default="env://", help="where the processes meet, such as tcp://HOST:PORT")
    dist.add_argument("--dist_timeout", type=float, default=30, metavar="MINUTES",
                      help="how long to wait for the other processes before they count as lost")
    return parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line; an unknown flag ends the program with the nearest known one."""
    parser = get_args_parser()
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        parser.error(f"unknown argument {unknown[0]}.{nearest(unknown[0], parser._option_string_actions)}")
    return args


def check_args(args: argparse.Namespace) -> None:
    """Refuses combinations in which a flag would have no effect."""
    benchmark_only = args.benchmark and args.benchmark_only
    trains = not (args.eval or args.test or benchmark_only)
    needs = [
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
                                                                         "--resume goes on with one: choose"),
        (args.start_epoch and (args.resume or not trains), "--start_epoch is for a training from scratch; --resume "
                                                           "knows its epoch"),
        ((args.eval or args.test) and not args.resume and not benchmark_only, "--eval and --test need --resume FILE"),
        (args.resume == "auto" and not trains, "--resume auto is for training; name the checkpoint"),
        (args.per_class and (args.test or benchmark_only), "--per_class needs annotations to evaluate with"),
        ((args.find_unused_params or args.note or args.strict_data or args.compile or args.find_batch_size)
         and not trains, "--find_unused_params, --note, --strict_data, --compile and --find_batch_size are for "
                         "training"),
        (args.rank and args.world_size == 1 and "RANK" not in os.environ, "--rank needs --world_size"),
        (not args.coco_path and not benchmark_only, "--coco_path DIR is missing"),
    ]
    for wrong, message in needs:
        if wrong:
            raise UserError(message)


@watch_for_lost_processes()
def main(args: argparse.Namespace) -> int:
    """Returns the exit code."""
    check_args(args)
    device = init_distributed(args.device, args.world_size, args.rank, args.local_rank, args.dist_url,
                              args.dist_timeout)
    setup_logging(rank())
    if device.type == "cpu":
        keep_freed_memory()
    if args.config_file is None:
        args.config_file = Path(__file__).parent / DEFAULT_CONFIG
        logger.info("no -c: the config is %s", DEFAULT_CONFIG)
    config = load_config(args.config_file, parse_pairs(expand_short_forms(args) + args.options))
    trains = not (args.eval or args.test or args.benchmark_only)
    checkpoint = read_checkpoint(args.resume) if args.resume and not trains else None
    split = "test" if args.test else "val" if args.eval or args.benchmark_only else "train"
    adapt_config(config, args.coco_path, split, checkpoint)
    options = parse_options(config)

    torch.manual_seed(args.seed)  # the same on every process while the model is built
    start = {"pretrained_backbone": needs_backbone_weights(args, options)}
    model, criterion, postprocessors = build_model(config | start)
    place(model, device)
    criterion.to(device)
    torch.manual_seed(args.seed + rank())

    if checkpoint is not None:
        load_weights(model, checkpoint, ema=options.training.use_ema)
    if args.benchmark:
        if is_main():
            run_benchmark(args, options, model, device)
        if args.benchmark_only:
            return 0
    folder = output_folder(args)
    if args.eval or args.test:
        return run_evaluation(args, options, folder, model, criterion, postprocessors["bbox"], device)
    if args.compile:
        compile_parts(model, args.compile)
    trainer = Trainer(args, config, options, folder, device, amp_dtype(options.training, args.amp, device))
    return trainer.run(model, criterion, postprocessors["bbox"])


def output_folder(args: argparse.Namespace) -> Path:
    return Path(args.output_dir or Path("outputs") / Path(args.config_file).stem)


def needs_backbone_weights(args: argparse.Namespace, options: Options) -> bool:
    """ImageNet weights are of no use where a checkpoint follows, or where only shapes and times count."""
    other_weights = args.pretrain_model_path and not args.finetune_ignore
    resumed = args.resume == "auto" and (output_folder(args) / "checkpoint.pth").is_file() or args.resume not in (
        None, "auto")
    useless = args.eval or args.test or args.benchmark_only or other_weights or resumed
    return options.backbone.pretrained_backbone and not useless


def run_benchmark(args: argparse.Namespace, options: Options, model: nn.Module, device: torch.device) -> None:
    if args.coco_path and not args.benchmark_size:
        dataset = CocoDetection(args.coco_path, "val", val_transforms(options.data, args.fix_size))
        images = [dataset[i][0] for i in range(min(100, len(dataset)))]
    else:
        generator = torch.Generator().manual_seed(args.seed)
        images = [torch.randn(3, *(args.benchmark_size or (800, 1066)), generator=generator)]
    print(benchmark(model, images, device, amp_dtype(options.training, args.amp, device)), flush=True)


def run_evaluation(args: argparse.Namespace, options: Options, folder: Path, model: nn.Module, criterion: nn.Module,
                   postprocess: nn.Module, device: torch.device) -> int:
    """--eval and --test."""
    split = "test" if args.test else "val"
    dataset = CocoDetection(args.coco_path, split, val_transforms(options.data, args.fix_size))
    if is_main():
        prepare_folder(folder)
    loader = eval_loader(dataset, options.data.eval_batch_size, args.num_workers)
    evaluator = CocoEvaluator(dataset.coco)
    with worker_crash_as_user_error(loader):
        losses = evaluate(model, None if args.test else criterion, postprocess, loader, evaluator, device,
                          amp_dtype=amp_dtype(options.training, args.amp, device),
                          max_batches=DEBUG_BATCHES if args.debug else None)
    if not is_main():
        return 0
    if args.test or args.save_results:
        path = folder / "results" / f"{split}_detections.json"
        evaluator.save_results(path)
        logger.info("wrote %d detections to %s", len(evaluator.rows()), path)
    if not args.test:
        stats = report(evaluator, args.per_class)
        if args.save_log:
            (folder / "eval").mkdir(exist_ok=True)
            LogFile(folder / "eval" / "log.txt").append(
                {f"test_{k}": v for k, v in losses.items()} | {"test_coco_eval_bbox": stats, "resume": args.resume})
            (folder / "eval" / "table.txt").write_text(f"{evaluator.table}\n{evaluator.per_class()}\n")
        if args.summary:
            from reports.summary import write_summary  # importing matplotlib takes a second

            facts = {"checkpoint": args.resume, "config": args.config_file, "data": args.coco_path}
            logger.info("summary\n%s", write_summary(folder, evaluator, dataset.folder, folder / "log.txt", facts))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(parse_args()))
    except UserError as error:
        # An error in a data-loading process arrives with that process's traceback around it.
        logging.getLogger("main").error("%s", str(error).rsplit("UserError: ", 1)[-1].strip())
        sys.exit(error.exit_code)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
