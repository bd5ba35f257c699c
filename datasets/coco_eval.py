"""What detections are worth: average precision by COCO's rules or LVIS's, and CrowdHuman's miss rate.

Each image counts once whatever the number of processes. datasets/evaluation/ computes.
"""
import json
import logging
from collections import Counter
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from torch import Tensor

from datasets.coco import class_names
from datasets.evaluation.arrays import DetectionArrays, GroundTruth
from datasets.evaluation.crowdhuman import crowdhuman_stats, is_crowdhuman
from datasets.evaluation.curves import CLASS_STATS, IOUS, STATS, Curves, stats_table
from datasets.evaluation.evaluators import measure
from datasets.evaluation.lvis import MAX_DETECTIONS as LVIS_MAX_DETECTIONS
from datasets.evaluation.lvis import FederatedLabels, federated, frequency_stats, is_lvis
from util.files import write_text
from util.options import EvaluationOptions

logger = logging.getLogger(__name__)
Detections = dict[int, list[dict[str, Any]]]  # by image id, in COCO's result format (boxes as xywh px)

MAX_DETECTIONS = 100  # that COCO's numbers look at, per class in an image
PER_CLASS = "class and image"  # what the limit is of, but LVIS's
DEFAULT_OPTIONS = EvaluationOptions()


@dataclass(frozen=True)
class ClassScore:
    """Average precision of one class."""

    stats: dict[str, float | None]  # CLASS_STATS in [0, 1]; None where nothing can be measured
    boxes: int  # in the ground truth


@dataclass(frozen=True)
class Rules:
    """What is measured on a data set."""

    metrics: str  # "coco", "lvis" or "crowdhuman"
    limit: int  # detections that count, per class in an image; LVIS: in an image

    @classmethod
    def of(cls, truth: COCO, options: EvaluationOptions) -> "Rules":
        metrics = options.metrics
        if metrics == "auto":
            metrics = "lvis" if is_lvis(truth) else "crowdhuman" if is_crowdhuman(truth) else "coco"
        return cls(metrics, options.max_dets or (LVIS_MAX_DETECTIONS if metrics == "lvis" else MAX_DETECTIONS))

    @property
    def stat_names(self) -> tuple[str, ...]:
        """STATS, with the limit in place of 100."""
        return tuple(name.replace(str(MAX_DETECTIONS), str(self.limit)) for name in STATS)

    @property
    def limited(self) -> str:
        """What the limit is of."""
        return "image" if self.metrics == "lvis" else PER_CLASS


COCO_RULES = Rules("coco", MAX_DETECTIONS)


@dataclass(frozen=True)
class EvaluationSummary:
    """What detections are worth, against the ground truth of the images they were made on."""

    truth: COCO
    detections: Detections
    stats: tuple[float, ...]  # COCO's twelve numbers, see stat_names; -1 where nothing can be measured
    table: str  # the same numbers as pycocotools prints them
    classes: dict[int, ClassScore]  # by rising category id
    precision: dict[float, np.ndarray]  # by IoU 0.5, 0.55 .. 0.95: [recalls 0, 0.01 .. 1, classes]; -1: no boxes
    rules: Rules = COCO_RULES
    more: dict[str, float | None] = field(default_factory=dict)  # numbers of LVIS or CrowdHuman in [0, 1]
    evaluator: str = "pycocotools"  # the program that measured

    @property
    def stat_names(self) -> tuple[str, ...]:
        """The names of `stats`."""
        return self.rules.stat_names

    @property
    def limit_note(self) -> str | None:
        """See limit_note."""
        by_class = self.rules.limited == PER_CLASS
        return limit_note(((i, a["category_id"] if by_class else 0) for i in self.detections
                           for a in self.truth.imgToAnns[i] if not a["iscrowd"]), self.rules.limit, self.rules.limited)

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


def summarize(truth: COCO, detections: Detections, options: EvaluationOptions = DEFAULT_OPTIONS) -> EvaluationSummary:
    """The evaluation over the images that `detections` has an entry for, even an empty one. Raises UserError if the
    evaluator that the options name is not installed."""
    rules = Rules.of(truth, options)
    annotated = GroundTruth.of_coco(truth, list(detections))
    found = _finite(DetectionArrays.of_rows(annotated, detections))
    judged, counted, labels = annotated, found, None
    if rules.metrics == "lvis":
        labels = FederatedLabels.of_coco(truth, annotated)
        judged, counted = federated(annotated, labels, found, rules.limit)
    limits = (1, 10, rules.limit)
    curves, evaluator = measure(judged, counted, limits, options.evaluator)
    more = {}
    if labels is not None:
        more = frequency_stats(curves, labels)
    elif rules.metrics == "crowdhuman":
        more = crowdhuman_stats(annotated, found)
    stats = curves.stats()
    return EvaluationSummary(truth, detections, stats, stats_table(stats, limits) + _more_table(more),
                             _class_scores(annotated, curves), dict(zip(IOUS, curves.precision[..., 0])), rules, more,
                             evaluator)


def limit_note(objects: Iterable[tuple[Any, int]], limit: int = MAX_DETECTIONS, limited: str = PER_CLASS) -> str | None:
    """What a limit of detections hides of objects, given as (image, class); None if nothing. limited: what the limit is
    of, in words."""
    over = {key: count - limit for key, count in Counter(objects).items() if count > limit}
    if not over:
        return None
    images = {image for image, _ in over}
    return (f"{sum(over.values())} of the objects, in {len(images)} of the images, are beyond the {limit} "
            f"detections per {limited} that count: no detector can find them there, and AP and AR are too "
            "low. Raise max_dets (and num_select, the detections of the model), or cut such images into smaller ones")


def log_summary(summary: EvaluationSummary, per_class: bool = False) -> None:
    """Prints the table, and with per_class the one per class."""
    if summary.stats[0] < 0:
        logger.warning("no ground-truth boxes to measure AP with: it is given as -1")
    if note := summary.limit_note:
        logger.warning("%s", note)
    rules = {"coco": "COCO", "lvis": "LVIS", "crowdhuman": "COCO and CrowdHuman"}[summary.rules.metrics]
    logger.info("%s evaluation of %d images, by %s\n%s", rules, len(summary.detections), summary.evaluator,
                summary.table.rstrip())
    if per_class:
        logger.info("by class\n%s", summary.class_table)


def log_entries(summary: EvaluationSummary) -> dict[str, Any]:
    """The entries of a line of log.txt."""
    return {"test_coco_eval_bbox": summary.stats} | {f"test_{name}": value for name, value in summary.more.items()
                                                     if value is not None}


def result_rows(detections: Detections) -> list[dict[str, Any]]:
    """All detections, by rising image id."""
    return [row for image_id in sorted(detections) for row in detections[image_id]]


def save_results(path: Path, detections: Detections) -> int:
    """Writes a COCO results file. Returns the number of detections."""
    rows = result_rows(detections)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(rows))
    return len(rows)


def _finite(detections: DetectionArrays) -> DetectionArrays:
    """Without those whose score or box is no finite number, which would have no rank or match anything."""
    finite = np.isfinite(detections.scores) & np.isfinite(detections.boxes).all(1)
    if finite.all():
        return detections
    logger.warning("%d detections have a score or box that is no finite number: they do not count", (~finite).sum())
    return detections.only(finite)


def _class_scores(truth: GroundTruth, curves: Curves) -> dict[int, ClassScore]:
    return {category: ClassScore(curves.class_stats(label), int(truth.objects[label]))
            for label, category in enumerate(truth.categories)}


def _more_table(more: dict[str, float | None]) -> str:
    return "".join(f" {name:<72}= {-1 if value is None else value:0.3f}\n" for name, value in more.items())
