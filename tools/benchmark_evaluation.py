"""How long an evaluation takes with each evaluator that is installed, and how much their numbers differ.

    python tools/benchmark_evaluation.py
    python tools/benchmark_evaluation.py --images 20000 --classes 1203 --evaluators hotcoco --markdown evaluation.md

Annotations and detections are random, as many as in COCO's val set: 7.2 boxes an image, and 100 detections, of which a
third lie near a box. Measured is all that follows the last image: what the summary of the detections takes, from COCO's
rows to the numbers by class.
"""
import argparse
import contextlib
import io
import sys
import time

import numpy as np
import torch
from pycocotools.coco import COCO

from common import run_tool, tool_parser
from datasets.coco_eval import Detections, EvaluationSummary, summarize
from datasets.evaluation.evaluators import EVALUATORS, JUDGE
from measuring import add_common_arguments, describe_run, write_results
from util.errors import UserError
from util.markdown import table, three_digits
from util.optional import require
from util.options import EvaluationOptions

BOXES = 7.2  # an image
WIDTH, HEIGHT = 640, 480


def random_data(images: int, detections: int, classes: int, seed: int = 0) -> tuple[COCO, Detections]:
    """detections: in each image."""
    rng = np.random.default_rng(seed)

    def some(count: int) -> np.ndarray:
        sides = np.exp(rng.uniform(np.log(8), np.log(300), (count, 2)))
        return np.concatenate([rng.uniform(0, 1, (count, 2)) * ((WIDTH, HEIGHT) - sides.clip(max=HEIGHT)), sides], 1)

    count = round(BOXES * images)
    image, label, boxes = np.sort(rng.integers(0, images, count)), rng.integers(0, classes, count), some(count)
    total = images * detections
    at, what, found = np.repeat(np.arange(images), detections), rng.integers(0, classes, total), some(total)
    scores = rng.beta(0.5, 3, total)
    first = np.searchsorted(image, at)
    present = np.searchsorted(image, at, "right") - first
    near = np.flatnonzero((rng.random(total) < 1 / 3) & (present > 0))
    source = first[near] + rng.integers(0, present[near])
    found[near] = boxes[source] + rng.normal(0, 0.06, (len(near), 4)) * np.tile(boxes[source, 2:], 2)
    what[near], scores[near] = label[source], rng.random(len(near))
    coco = COCO()
    coco.dataset = {
        "images": [{"id": i, "width": WIDTH, "height": HEIGHT, "file_name": ""} for i in range(images)],
        "categories": [{"id": i, "name": str(i)} for i in range(classes)],
        "annotations": [{"id": number, "image_id": i, "category_id": c, "bbox": box, "area": box[2] * box[3],
                         "iscrowd": 0} for number, (i, c, box) in enumerate(
                             zip(image.tolist(), label.tolist(), boxes.tolist()), 1)]}
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    rows: Detections = {i: [] for i in range(images)}
    for i, c, box, score in zip(at.tolist(), what.tolist(), found.tolist(), scores.tolist()):
        rows[i].append({"image_id": i, "category_id": c, "bbox": box, "score": score})
    return coco, rows


def measure_evaluator(name: str, truth: COCO, detections: Detections, repeat: int) -> tuple[float, EvaluationSummary]:
    """Seconds of the fastest of `repeat` evaluations, and what they say."""
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        summary = summarize(truth, detections, EvaluationOptions(name))  # type: ignore[arg-type]
        seconds.append(time.perf_counter() - start)
    return min(seconds), summary


def differences(summary: EvaluationSummary, judge: EvaluationSummary) -> float:
    """The largest between the twelve numbers, the numbers of the classes, and the points of the curves."""
    pairs = [*zip(summary.stats, judge.stats)]
    for ours, theirs in zip(summary.classes.values(), judge.classes.values()):
        pairs += [(a, b) if a is not None and b is not None else (a is None, b is None)
                  for a, b in zip(ours.stats.values(), theirs.stats.values())]
    curves = [np.abs(summary.precision[iou] - judge.precision[iou]).max() for iou in judge.precision]
    return float(max(*curves, *(abs(a - b) for a, b in pairs)))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = tool_parser(__doc__)
    add_common_arguments(parser)
    add = parser.add_argument
    add("--images", type=int, default=5000, help="default: %(default)s")
    add("--detections", type=int, default=100, help="in each image; default: %(default)s")
    add("--classes", type=int, default=80, help="default: %(default)s")
    add("--evaluators", nargs="+", choices=EVALUATORS, default=list(EVALUATORS), metavar="NAME",
        help="default: %(default)s")
    add("--repeat", type=int, default=1, help="the fastest of so many evaluations counts; default: %(default)s")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    if min(args.images, args.detections, args.classes, args.repeat) < 1:
        raise UserError("--images, --detections, --classes and --repeat must be at least 1")
    require(*args.evaluators)
    if args.threads:
        torch.set_num_threads(args.threads)
    truth, detections = random_data(args.images, args.detections, args.classes)
    measured = {}
    for name in args.evaluators:
        print(f"{name} ...", file=sys.stderr, flush=True)
        measured[name] = measure_evaluator(name, truth, detections, args.repeat)
    records = [{"evaluator": name, "seconds": seconds, "AP": summary.stats[0],
                "difference": differences(summary, measured[JUDGE][1]) if JUDGE in measured else None}
               for name, (seconds, summary) in measured.items()]
    rows = [[record["evaluator"], three_digits(record["seconds"]), f"{100 * record['AP']:.2f}",
             "-" if record["difference"] is None else f"{record['difference']:.0e}"] for record in records]
    about = describe_run(torch.device("cpu"), "float64")
    size = f"{args.images} images, {args.detections} detections in each, {args.classes} classes"
    text = "\n\n".join([f"{about['device']}; {size}", table(["evaluator", "s", "AP", f"largest difference to {JUDGE}"],
                                                           rows, "lrrr"), f"`{about['command']}`\n"])
    write_results(args, text, about | {"images": args.images, "detections": args.detections, "classes": args.classes,
                                       "evaluators": records})


if __name__ == "__main__":
    run_tool(main, parse_args())
