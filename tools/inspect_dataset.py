"""What to know about a data set before a training: what is in it, what is wrong with it, what a training costs.

    python tools/inspect_dataset.py PATH                             numbers, problems, pictures
    python tools/inspect_dataset.py PATH -c CONFIG --options k=v     at its sizes; time and memory of a step
    python tools/inspect_dataset.py PATH --fix NEW_DIR               a corrected copy, in COCO 2017's layout
    python tools/inspect_dataset.py PATH --convert coco NEW_DIR      the same: any layout as COCO 2017; a test set too

PATH is what main.py takes as --data; -c CONFIG without PATH takes the places that the config names.

Writes report.md, report.json, samples.png (train images as the training sees them) and boxes.png. The exit code is 1
if something would stop a training.
"""
import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torchvision.ops import box_convert
from torchvision.transforms.v2 import functional as F

from common import add_device_flag, add_options_flag, run_tool, tool_parser
from datasets.adapt import check_sizes, fitting_sizes
from datasets.annotations import has_size
from datasets.augmentation import Augmentation
from datasets.coco import CocoDetection
from datasets.data import DetectionData
from datasets.inspection.repair import repair
from datasets.inspection.report import classes, heading, listed_cost, listed_problems, overview, verdict
from datasets.inspection.split import BOTH, KINDS, SplitInspection, inspect_split
from datasets.inspection.statistics import data_warnings, seen_sides, split_statistics
from datasets.loaders import train_loader
from datasets.mixing import Mixing
from datasets.phases import Sample
from datasets.shapes import largest_train_shape, padding_for
from datasets.transforms import eval_limits
from measure.memory import resident
from measure.model_cost import device_name
from measure.step_cost import Batch, measure_step, memory_levers, memory_limit, worst_batch
from models import build_model
from reports.data_plots import NAME_LENGTH, plot_boxes
from reports.drawing import draw_targets
from reports.fonts import shown_names
from reports.grid import save_grid
from util.config import Config, load_config, override, parse_pairs
from util.cpu import keep_freed_memory
from util.distributed import init_distributed
from util.errors import UserError
from util.files import write_text
from util.options import BackboneOptions, Options, parse_options
from util.outputs import keep_inputs
from util.precision import amp_dtype, place

EXAMPLES = 5  # named for each kind of problem
STEP_BATCHES = 3  # whose median is the time of a step


def main(args: argparse.Namespace) -> int:
    """Returns the exit code."""
    config = load_config(args.config_file) if args.config_file else Config(modelname="dino")
    override(config, parse_pairs(args.options), args.config_file or "the usual config")
    options = parse_options(config)
    data = DetectionData(args.root, options.data)
    name = Path(args.root or args.config_file or "places").resolve().stem
    folder = Path(args.output_dir or Path("outputs") / "inspect" / name)
    new_root = new_folder(args)
    keep_inputs([folder, *([new_root] if new_root else [])],
                [images for split in BOTH for images in data.source(split).folders])
    device = init_distributed(args.device, world_size=1, rank=0, local_rank=0, dist_url="env://")
    train, val = splits = [inspect_split(data, split, progress=sys.stderr.isatty()) for split in BOTH]
    if options.data.image_size is not None:  # as adapt_options does, but also for data that would stop a training
        check_sizes(options.data)
        sized = [(image["width"], image["height"]) for image in train.images.values() if has_size(image)]
        config.update(fitting_sizes(options.data.image_size, sized) | {"image_size": None})
        options = parse_options(config)
    stride, num_queries = finest_stride(options.backbone), options.decoder.num_queries if args.config_file else None
    described = {split.split: split_statistics(split, options.data, stride) for split in splits}
    found = {"data": str(data.root), "config": args.config_file, "splits": described,
             "problems": {split.split: problems(split) for split in splits},
             "warnings": data_warnings(train, val, described, num_queries),
             "stops": reasons_to_stop(splits, options, args.config_file), "step": None}
    text = [heading(found), overview(described), classes(described), listed_problems(found)]
    folder.mkdir(parents=True, exist_ok=True)
    print("\n\n".join(text), flush=True)
    draw_boxes(splits, described, options, folder / "boxes.png")
    if not train.stops():
        dataset = CocoDetection(data, "train", Augmentation(options.data))
        draw_samples(dataset, train.class_names, args.samples, folder / "samples.png")
        if args.config_file and not found["stops"]:
            found["step"] = expected_cost(config, options, train, described["train"], dataset, device)
            text.append(listed_cost(found["step"]))
            print("\n" + text[-1])
    text.append(verdict(found["stops"]))
    print("\n" + text[-1])
    if new_root:
        copied = [*splits, *(inspect_split(data, "test") for name in data.sources if name == "test")]
        text.append(write_corrected_copy(new_root, copied, {split.split: problems(split) for split in copied}))
        print("\n" + text[-1])
    write_text(folder / "report.md", "\n\n".join(text) + "\n")
    write_text(folder / "report.json", json.dumps(found, indent=1))
    print(f"\nwritten to {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    return 1 if found["stops"] else 0


def finest_stride(options: BackboneOptions) -> int:
    """Stride of the finest feature map that the model reads, in px of the image."""
    stage = min(options.return_interm_indices)
    return 16 if options.dilation and stage == 3 else 4 * 2**stage


def problems(split: SplitInspection) -> dict[str, dict]:
    """Count, first examples and consequences of each kind of problem in a split."""
    return {kind: {"meaning": KINDS[kind].meaning, "count": len(found),
                   "examples": [problem.text for problem in found[:EXAMPLES]],
                   "stops": split.split in KINDS[kind].stops, "remedy": KINDS[kind].remedy}
            for kind, found in split.by_kind().items()}


def reasons_to_stop(splits: list[SplitInspection], options: Options, config_file: str | None) -> list[str]:
    reasons = [f"{split.split}: {KINDS[kind].meaning}" for split in splits for kind in split.by_kind()
               if split.split in KINDS[kind].stops]
    reasons += [f"{split.split}: no image can be read" for split in splits
                if not any(file and not file.error for file in split.files.values())]
    largest, num_classes = max(max(split.class_names) for split in splits), options.data.num_classes
    if config_file and num_classes != "auto" and num_classes <= largest:
        reasons.append(f"num_classes={num_classes}, but there is the category id {largest}: set num_classes to "
                       f"{largest + 1} or 'auto'")
    return reasons


def new_folder(args: argparse.Namespace) -> Path | None:
    """Where --fix or --convert write. Raises UserError for another layout than COCO's."""
    if args.convert and args.fix:
        raise UserError("--fix and --convert coco write the same: choose one")
    if args.convert and args.convert[0] != "coco":
        raise UserError(f"--convert {args.convert[0]}: only coco is written")
    target = args.convert[1] if args.convert else args.fix
    return Path(target) if target else None


def write_corrected_copy(new_root: Path, splits: list[SplitInspection], found: dict[str, dict]) -> str:
    """Writes the corrected copy; returns what changed."""
    before_after = repair(splits, new_root)
    changed, left = [], []
    for split, kinds in found.items():
        changed += [f"- {split}: {old} {name} -> {new}" for name, (old, new) in before_after[split].items()]
        changed += [f"- {split}: {row['count']} {row['meaning']}: {row['remedy']}" for row in kinds.values()
                    if row["remedy"]]
        left += [f"- {split}: {row['count']} {row['meaning']}" for row in kinds.values() if not row["remedy"]]
    return (f"## Corrected copy in {new_root}\n\n" + "\n".join(changed)
            + "\n\nLeft as they are:\n\n" + ("\n".join(left) or "- nothing else was found"))


def draw_boxes(splits: list[SplitInspection], described: dict[str, dict], options: Options, path: Path) -> None:
    counts = {}
    for split in splits:
        names, rows = shown_names(split.class_names, NAME_LENGTH), described[split.split]["classes"]
        counts[split.split] = {names[i]: rows[f"{i} {name}"]["boxes"] for i, name in split.class_names.items()}
    lengths = {split.split: seen_sides(split, *eval_limits(options.data)).prod(1) ** 0.5 for split in splits}
    by_image = {split.split: Counter(split.box_image) for split in splits}
    images = {split.split: [by_image[split.split][i] for i in split.images] for split in splits}
    plot_boxes(counts, lengths, images, eval_limits(options.data)[0], path)


def draw_samples(dataset: CocoDetection, names: dict[int, str], count: int, path: Path) -> None:
    """Evenly spaced samples of the train set, augmented as in a training: at its start the first one, and so on."""
    chosen = torch.linspace(0, len(dataset) - 1, min(count, len(dataset))).long().unique().tolist()
    pictures = []
    for pixels, target in (dataset[Sample(index, progress=i / len(chosen))] for i, index in enumerate(chosen)):
        image: Image.Image = F.to_pil_image(pixels)
        boxes = box_convert(target["boxes"], "cxcywh", "xyxy") * torch.tensor([*image.size] * 2)
        pictures.append(draw_targets(image, target["labels"], boxes, names))
    save_grid(pictures, path, title=f"{dataset.folder.name} as the training sees it", legend=False)


def expected_cost(config: Config, options: Options, train: SplitInspection, described: dict, dataset: CocoDetection,
                  device: torch.device) -> dict:
    """Time of a step on a few batches of the training, memory of a step on the largest possible one; seconds, bytes."""
    num_classes = options.data.num_classes
    if num_classes == "auto":
        num_classes = max(train.class_names) + 1
    config.update(num_classes=num_classes, pretrained_backbone=False)
    options = parse_options(config)
    if device.type == "cpu":
        keep_freed_memory()  # as in a training: it changes time and memory
    model, criterion, _ = build_model(config)
    place(model, device)
    criterion.to(device)
    pad_multiple = padding_for(options.data, device)
    precision = amp_dtype(options.training, False, device)
    batch_size, most = options.data.batch_size, Mixing(options.data).most_targets(int(described["boxes_an_image"][2]))
    sizes = [(image["width"], image["height"]) for image in train.images.values()]

    def largest_batch(images: int) -> Batch:
        shape = largest_train_shape(options.data, sizes, images, pad_multiple=pad_multiple)
        return worst_batch(images, shape, most, options.data.class_count)

    limit = memory_limit(device)
    cost: dict[str, Any] = {
        "device": device_name(device), "precision": str(precision or torch.float32).removeprefix("torch."),
        "batch_size": batch_size, "limit_bytes": limit, "seconds": None,
        "worst_shape": list(largest_train_shape(options.data, sizes, batch_size, pad_multiple=pad_multiple)),
        "most_boxes": most,
        "epochs": options.training.epochs, "levers": memory_levers(options, amp=precision is not None)}
    if device.type == "cpu" and batch_size > 1:  # too much memory would end this process: estimate first
        before = resident("VmRSS") * 2**20
        one = measure_step(model, criterion, [largest_batch(1)], device, precision).peak_bytes
        assert one is not None  # memory_limit has read /proc too
        cost["peak_bytes"] = round(one + (batch_size - 1) * (one - before))
        if cost["peak_bytes"] > limit:
            return cost
    try:
        largest = measure_step(model, criterion, [largest_batch(batch_size)], device, precision)
        steps = options.training.epoch_steps
        loader = train_loader(dataset, batch_size, num_workers=0, seed=0, pad_multiple=pad_multiple,
                              epoch_batches=steps and steps * options.training.grad_accum_steps)
        start = time.perf_counter()
        batches = [batch for batch, _ in zip(loader, range(STEP_BATCHES))]
        loading = (time.perf_counter() - start) / len(batches)
        seconds = measure_step(model, criterion, batches, device, precision).seconds
    except torch.cuda.OutOfMemoryError:
        return cost | {"peak_bytes": None}
    return cost | {"peak_bytes": largest.peak_bytes, "worst_seconds": largest.seconds, "seconds": seconds,
                   "loading_seconds": loading, "epoch_seconds": seconds * len(loader),
                   "training_seconds": seconds * len(loader) * options.training.epochs,
                   "passes": len(loader) * options.training.epochs * batch_size / len(dataset)}


def get_args_parser() -> argparse.ArgumentParser:
    parser = tool_parser(__doc__)
    parser.add_argument("root", nargs="?", metavar="PATH", help="the data set, as main.py takes it as --data")
    parser.add_argument("-c", "--config_file", help="config of the planned training")
    add_options_flag(parser)
    parser.add_argument("--output_dir", help="default: outputs/inspect/<name of PATH>")
    parser.add_argument("--fix", metavar="NEW_DIR", help="write a corrected copy, in COCO 2017's layout")
    parser.add_argument("--convert", nargs=2, metavar=("coco", "NEW_DIR"), help="the same as --fix NEW_DIR")
    parser.add_argument("--samples", type=int, default=16, help="pictures in samples.png")
    add_device_flag(parser)
    return parser


if __name__ == "__main__":
    run_tool(main, get_args_parser().parse_args())
