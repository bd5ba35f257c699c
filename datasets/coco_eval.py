"""COCO average precision (pycocotools), each image counted once whatever the number of processes."""
import contextlib
import copy
import io
import json
import logging
from collections import Counter
from collections.abc import Container, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from datasets.coco import class_names
from util.files import write_text

logger = logging.getLogger(__name__)
Detections = dict[int, list[dict[str, Any]]]  # by image id, in COCO's result format (boxes as xywh px)

STATS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
CLASS_STATS = STATS[:6]
MAX_DETECTIONS = 100  # that COCO's numbers look at, per class in an image


@dataclass(frozen=True)
class ClassScore:
    """Average precision of one class."""

    stats: dict[str, float | None]  # CLASS_STATS in [0, 1]; None where nothing can be measured
    boxes: int  # in the ground truth


@dataclass(frozen=True)
class EvaluationSummary:
    """What detections are worth, against the ground truth of the images they were made on."""

    truth: COCO
    detections: Detections
    stats: tuple[float, ...]  # COCO's twelve numbers, see STATS; -1 where nothing can be measured
    table: str  # the same numbers as pycocotools prints them
    classes: dict[int, ClassScore]  # by rising category id
    precision: dict[float, np.ndarray]  # by IoU 0.5, 0.55 .. 0.95: [recalls 0, 0.01 .. 1, classes]; -1: no boxes

    @property
    def limit_note(self) -> str | None:
        """See limit_note."""
        return limit_note((i, a["category_id"]) for i in self.detections for a in self.truth.imgToAnns[i]
                          if not a["iscrowd"])

    @property
    def class_table(self) -> str:
        """CLASS_STATS (%) and ground-truth boxes per class."""
        names = class_names(self.truth)
        lines = [f"{'class':<24}" + "".join(f"{name:>7}" for name in CLASS_STATS) + f"{'boxes':>8}"]
        for category, score in self.classes.items():
            cells = (f"{'-':>7}" if value is None else f"{100 * value:>7.1f}" for value in score.stats.values())
            lines.append(f"{names[category]:<24}{''.join(cells)}{score.boxes:>8}")
        return "\n".join(lines)


def coco_results(image_ids: list[int], results: list[dict[str, Tensor]], categories: Container[int]) -> Detections:
    """The detections of one batch that have one of the categories.

    results: the post-processor's "scores", "labels", "boxes" (xyxy px) per image.
    """
    detections = {}
    for image_id, result in zip(image_ids, results):
        boxes = result["boxes"].double().cpu().clone()
        boxes[:, 2:] -= boxes[:, :2]
        rows = zip(result["scores"].tolist(), result["labels"].tolist(), boxes.tolist())
        detections[image_id] = [{"image_id": image_id, "category_id": label, "bbox": box, "score": score}
                                for score, label, box in rows if label in categories]
    return detections


def summarize(truth: COCO, detections: Detections) -> EvaluationSummary:
    """COCO's evaluation over the images that `detections` has an entry for, even an empty one."""
    results = copy.copy(truth)
    results.dataset = {key: truth.dataset[key] for key in ("info", "images", "categories")} | {"annotations": [
        row | {"id": i + 1, "area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0}
        for i, row in enumerate(result_rows(detections))]}
    with contextlib.redirect_stdout(io.StringIO()):
        results.createIndex()
        evaluation = COCOeval(truth, results, "bbox")
        # As objects: NumPy would round large ids that it cannot hold as one type of integer.
        evaluation.params.imgIds = np.array(sorted(detections), object)
        evaluation.evaluate()
        evaluation.accumulate()
    with contextlib.redirect_stdout(io.StringIO()) as table:
        evaluation.summarize()
    precision = evaluation.eval["precision"][..., -1]  # [IoU, recall, class, size], with the most detections per image
    ious = [round(float(iou), 2) for iou in evaluation.params.iouThrs]
    boxes = Counter(a["category_id"] for i in detections for a in truth.imgToAnns[i] if not a["iscrowd"])
    classes = {category: ClassScore(_class_stats(ious, precision[:, :, i]), boxes[category])
               for i, category in enumerate(evaluation.params.catIds)}
    return EvaluationSummary(truth, detections, tuple(float(x) for x in evaluation.stats), table.getvalue(), classes,
                             dict(zip(ious, precision[:, :, :, 0])))


def limit_note(objects: Iterable[tuple[Any, int]]) -> str | None:
    """What MAX_DETECTIONS hides of objects, given as (image, class); None if nothing."""
    over = {key: count - MAX_DETECTIONS for key, count in Counter(objects).items() if count > MAX_DETECTIONS}
    if not over:
        return None
    images = {image for image, _ in over}
    return (f"{sum(over.values())} of the objects, in {len(images)} of the images, are beyond the {MAX_DETECTIONS} "
            "detections per class and image that COCO counts: no detector can find them there, and AP and AR are too "
            "low. Cut such images into smaller ones")


def log_summary(summary: EvaluationSummary, per_class: bool = False) -> None:
    """Prints COCO's table, and with per_class the one per class."""
    if summary.stats[0] < 0:
        logger.warning("no ground-truth boxes to measure AP with: it is given as -1")
    if note := summary.limit_note:
        logger.warning("%s", note)
    logger.info("COCO evaluation of %d images\n%s", len(summary.detections), summary.table.rstrip())
    if per_class:
        logger.info("by class\n%s", summary.class_table)


def result_rows(detections: Detections) -> list[dict[str, Any]]:
    """All detections, by rising image id."""
    return [row for image_id in sorted(detections) for row in detections[image_id]]


def save_results(path: Path, detections: Detections) -> int:
    """Writes a COCO results file. Returns the number of detections."""
    rows = result_rows(detections)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(rows))
    return len(rows)


def _class_stats(ious: list[float], precision: np.ndarray) -> dict[str, float | None]:
    """CLASS_STATS from the precision [IoU, recall, size] of one class."""
    whole, *sizes = np.moveaxis(precision, -1, 0)
    return dict(zip(CLASS_STATS, map(_mean, (whole, whole[ious.index(0.5)], whole[ious.index(0.75)], *sizes))))


def _mean(precision: np.ndarray) -> float | None:
    measured = precision[precision > -1]
    return float(measured.mean()) if measured.size else None
