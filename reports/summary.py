"""The report that ends a training or an evaluation: summary.md, its pictures, summary.json and report.html."""
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO

from datasets.coco import class_names
from datasets.coco_eval import EvaluationSummary
from datasets.evaluation.curves import CLASS_STATS
from datasets.images import read_image
from reports.curves import plot_log, read_log
from reports.drawing import detection_tensors, draw_closely, truth_tensors
from reports.error_analysis import (
    BEYOND_LIMIT,
    CONFIDENT,
    KINDS,
    ErrorSplit,
    Matches,
    OperatingPoint,
    background_errors,
    confusion_matrix,
    match_detections,
    operating_points,
    tide_errors,
)
from reports.fonts import shown_names
from reports.grid import save_grid
from reports.numbers import NAME as NUMBERS
from reports.numbers import measured_stats, rounded_down, write_numbers
from reports.page.builder import write_page
from reports.plots import NAME_LENGTH, READABLE_CELLS, plot_confusion_matrix, plot_errors, plot_precision_recall
from util.errors import UserError
from util.files import write_text
from util.markdown import table

logger = logging.getLogger(__name__)

STAT_MEANINGS = {
    "AP": "mean over the IoUs 0.50, 0.55 .. 0.95", "AP50": "IoU 0.50", "AP75": "IoU 0.75",
    "APs": "objects below 32² px", "APm": "objects from 32² to 96² px", "APl": "objects above 96² px",
    "AR1": "recall with 1 detection per image and class", "AR10": "recall with 10",
    "ARs": "recall of small objects", "ARm": "recall of medium objects", "ARl": "recall of large objects",
    "APr": "rare classes, in up to 10 images of the training set", "APc": "common classes, in up to 100",
    "APf": "frequent classes",
    "MR-2": "CrowdHuman's log-average miss rate: less is better",
    "AP50-CrowdHuman": "CrowdHuman's AP: IoU 0.50, all detections count",
}
HEADINGS = {"coco": "COCO's twelve numbers", "lvis": "LVIS's numbers", "crowdhuman": "COCO's and CrowdHuman's numbers"}
REMEDIES = {  # what each kind of error is, and what to do about it
    "classification": "right place, wrong class: look for wrong labels and for classes that look alike, or that the "
                      "annotators confused; more examples of the rare ones",
    "localization": "right class, box too loose or shifted (IoU 0.1 to 0.5): check how tight the annotated boxes are; "
                    "larger images; longer training",
    "both": "near an object, but wrong class and loose: mostly disappears with the first two",
    "duplicate": "a second detection of an object that is found: rare in a fully trained DETR; train "
                 "longer, and check for objects that are annotated twice",
    "background": "detected where nothing is annotated: look for objects that the annotators forgot; add images "
                  "without objects, and images that look like these mistakes",
    "missed": "objects without any detection near: small or hidden ones need larger images, rare ones more examples",
    "false positives": "all wrong detections together",
    "false negatives": "all objects not found together",
    BEYOND_LIMIT: "objects that only a detection shows that is not among the best of its class in the image, where "
                  "more are annotated than count: a limit of the evaluation (max_dets), no error",
}
PICTURES = {"curves.png": "loss, AP and learning rate by epoch", "precision_recall.png": "precision over recall",
            "confusion_matrix.png": "confusion matrix", "errors.png": "what each kind of error costs",
            "background.png": "the most confident detections of nothing that is annotated: forgotten, or mistaken?"}
PAGE = "report.html"
CLOSE_UPS = 16  # in background.png


def write_summary(folder: str | os.PathLike, summary: EvaluationSummary, images: str | os.PathLike,
                  log_path: str | os.PathLike | None = None, facts: Mapping[str, object] | None = None,
                  weights: str = "", evaluation: Mapping[str, Any] | None = None) -> str:
    """Writes summary.md, PICTURES, summary.json and report.html into `folder`; returns a text of a few lines for the
    console.

    images: the folder with what was evaluated. log_path: of a training's log.txt, for the curves; one that is missing
    or has no epoch gives none. facts: listed at the top, such as {"checkpoint": path}. weights: checksum of those that
    were evaluated, and evaluation: how (reports.conditions), for summary.json.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = list(class_names(summary.truth)[category] for category in summary.classes)
    matches = match_detections(summary.truth, summary.detections, summary.rules)
    matrix, errors, points = confusion_matrix(matches), tide_errors(matches), operating_points(matches)

    shown = list(shown_names(dict(zip(summary.classes, names)), NAME_LENGTH).values())
    plot_precision_recall({f"IoU {iou}": summary.precision[iou] for iou in (0.5, 0.75)}, shown,
                          folder / "precision_recall.png")
    plot_confusion_matrix(matrix, shown, f"Detections with a score of at least {CONFIDENT}",
                          folder / "confusion_matrix.png")
    plot_errors({kind: errors.gains[kind] for kind in KINDS},
                {kind: gain for kind, gain in errors.gains.items() if kind not in KINDS}, folder / "errors.png")
    pictures = ["precision_recall.png", "confusion_matrix.png", "errors.png"]
    if draw_background(summary.truth, matches, Path(images), folder / "background.png"):
        pictures.append("background.png")
    if log_path is not None and Path(log_path).is_file() and (records := read_log(log_path)):
        plot_log(records, folder / "curves.png")
        pictures.insert(0, "curves.png")

    stats = measured_stats(summary)
    size = f"{len(summary.detections)} images, {len(matches.truth)} boxes, {len(names)} classes"
    parts = [_heading(stats, size, facts or {}), _coco_part(stats, summary),
             _class_part(summary, names, points), _error_part(errors), _confusion_part(matrix, names),
             _picture_part(pictures)]
    write_numbers(folder / NUMBERS, summary, points, errors, facts or {}, weights, evaluation or {})
    write_page(folder / PAGE, summary, matches, points, Path(images), facts or {})
    write_text(folder / "summary.md", "\n\n".join(parts) + "\n")
    return _console(stats, size, errors, summary, names, folder / "summary.md")


def draw_background(coco: COCO, matches: Matches, images: Path, path: Path) -> bool:
    """Close-ups of the most confident background errors, in files below `images`. False: there are none to draw."""
    path.unlink(missing_ok=True)  # of an earlier summary
    names, close_ups = class_names(coco), []
    for i in background_errors(matches, CLOSE_UPS):
        image_id = matches.images[i]
        row = {"bbox": matches.bboxes[i].tolist(), "score": float(matches.scores[i]),
               "category_id": matches.categories[matches.labels[i]]}
        try:
            listed = coco.imgs[image_id]
            image = read_image(images / listed["file_name"], (listed["width"], listed["height"]))
        except UserError as error:  # the file changed since the evaluation
            logger.warning("no close-up: %s", error)
            continue
        close_ups.append(draw_closely(image, truth_tensors(coco.imgToAnns[image_id]), detection_tensors([row]), names))
    if close_ups:
        save_grid(close_ups, path)
    return bool(close_ups)


def _heading(stats: dict[str, float | None], size: str, facts: Mapping[str, object]) -> str:
    lines = [f"- {name}: {value}" for name, value in facts.items()]
    return "\n".join(["# Summary", "", f"**AP {_percent(stats['AP'])}, AP50 {_percent(stats['AP50'])}** on {size}",
                      *([""] if lines else []), *lines, "",
                      "AP, AR, precision and recall are in percent; \"-\" is what cannot be measured."])


def _coco_part(stats: dict[str, float | None], summary: EvaluationSummary) -> str:
    rules, note = summary.rules, summary.limit_note
    meanings = STAT_MEANINGS | {f"AR{rules.limit}": f"recall with {rules.limit}"}
    rows = [[name, _percent(value), meanings[name]] for name, value in stats.items()]
    return (f"## {HEADINGS[rules.metrics]}\n\n" + (f"**{note}.**\n\n" if note else "")
            + table(["", "%", "meaning"], rows, "lrl"))


def _class_part(summary: EvaluationSummary, names: list[str], points: list[OperatingPoint | None]) -> str:
    rows = []
    for name, score, point in zip(names, summary.classes.values(), points):
        operating = ["-"] * 3 if point is None else [f"{rounded_down(point.score):.3f}", _percent(point.precision),
                                                     _percent(point.recall)]
        rows.append([name, *(_percent(score.stats[stat]) for stat in CLASS_STATS), str(score.boxes), *operating])
    return ("## Classes\n\n" + table(["class", *CLASS_STATS, "boxes", "best score", "precision", "recall"], rows,
                                      "l" + "r" * 10)
            + "\n\nBest score: the least score of a detection to use, for the best F1 (the harmonic mean of precision "
              "and recall, both at IoU 0.5) on these images.")


def _error_part(errors: ErrorSplit) -> str:
    rows = [[kind, _percent(gain), str(errors.counts[kind]), REMEDIES[kind]] for kind, gain in errors.gains.items()]
    return ("## Errors\n\n" + table(["kind", "AP50 gained without it", "count", "what it is, and what to do"], rows,
                                     "lrrl")
            + f"\n\nAfter TIDE (Bolya et al., ECCV 2020), at AP50 {_percent(errors.ap50)}. Each kind is fixed on its "
              "own, so the gains do not add up. Counts are of detections with any score, most of which cost little: "
              "the gain says what matters.")


def _confusion_part(matrix: np.ndarray, names: list[str]) -> str:
    text = (f"## Confusion matrix\n\nDetections with a score of at least {CONFIDENT}; rows: ground truth, columns: "
            "detected as. Last column: annotated, but not detected; last row: detected, but not annotated.\n\n")
    if len(names) > READABLE_CELLS:
        pairs = [(count, row, column) for (row, column), count in np.ndenumerate(matrix[:-1, :-1])
                 if row != column and count]
        pairs = sorted(pairs, key=lambda pair: -pair[0])[:10]
        rows = [[names[row], names[column], str(count)] for count, row, column in pairs]
        return text + (f"The {len(rows)} classes most often taken for another; all are in confusion_matrix.png.\n\n"
                       + table(["ground truth", "detected as", "count"], rows, "llr") if rows else
                       "No class is taken for another.")
    cells = matrix.astype(str)
    cells[-1, -1] = ""
    return text + table(["", *names, "missed"],
                         [[f"**{name}**", *row] for name, row in zip([*names, "background"], cells)],
                         "l" + "r" * len(cells))


def _picture_part(pictures: list[str]) -> str:
    return (f"## Pictures\n\n[{PAGE}]({PAGE}) shows every image with its boxes, by what went wrong, for any score "
            "threshold.\n\n") + "\n\n".join(f"![{PICTURES[name]}]({name})" for name in pictures)


def _console(stats: dict[str, float | None], size: str, errors: ErrorSplit, summary: EvaluationSummary,
             names: list[str], path: Path) -> str:
    lines = [", ".join(f"{name} {_percent(stats[name])}" for name in (*CLASS_STATS, *summary.more)) + f" on {size}"]
    worst = sorted((score.stats["AP"], name) for name, score in zip(names, summary.classes.values())
                   if score.stats["AP"] is not None)
    if len(worst) > 1:
        lines.append("hardest classes by AP: " + ", ".join(f"{name} {_percent(ap)}" for ap, name in worst[:3]))
    costs = sorted(((errors.gains[kind], kind) for kind in KINDS if errors.gains[kind] is not None), reverse=True)
    if costs:
        lines.append("AP50 gained without: " + ", ".join(f"{kind} {_percent(gain)}" for gain, kind in costs))
    return "\n".join([*lines, f"more, with pictures, in {path} and {path.with_name(PAGE)}"])


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
