"""summary.json: the numbers of summary.md for other programs, and which weights they belong to.

    {"format": 2,
     "weights": checksum of the evaluated weights (util.checkpoint.checksum), "" where the writer did not know them,
     "facts": {"checkpoint": text, "config": text, "data": text, ...} as at the top of summary.md,
     "evaluation": {"precision": "float32", "shorter_side": px, "nms_iou_threshold": .., ...}, how it was done
                   (reports.conditions.conditions), {} where the writer did not know it,
     "images": number of them, "boxes": in their ground truth, without crowds,
     "stats": {"AP": .., "AR100": .., ...}, COCO's twelve (EvaluationSummary.stat_names), and those of LVIS or
         CrowdHuman beside them (EvaluationSummary.more),
     "classes": {category id: {"name": text, "boxes": number, "AP": .., ... (CLASS_STATS),
                               "threshold": .., "precision": .., "recall": .., "f1": ..}},
     "errors": {kind: {"gain": AP50 gained without it, "count": number}} as in the table of errors}

All shares and scores are in [0, 1], and null where there is nothing to measure. A threshold is the score of the best F1
of its class at IoU 0.5, rounded down to three digits so that the detection with exactly this score is kept; precision,
recall and f1 are those at it.
"""
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets.coco import class_names
from datasets.coco_eval import EvaluationSummary
from reports.error_analysis import ErrorSplit, OperatingPoint
from util.errors import UserError
from util.files import write_text
from util.saved_state import is_number, is_whole

FORMAT = 2
NAME = "summary.json"


@dataclass(frozen=True)
class Measured:
    """What a summary.json says of weights: the scores of best F1 by category id, and COCO's numbers, as far as there
    was something to measure; both in [0, 1]. images: how many were evaluated. facts, evaluation: see the schema."""

    thresholds: dict[int, float]
    stats: dict[str, float]
    images: int
    facts: dict[str, str]
    evaluation: dict[str, Any]


def measured_stats(summary: EvaluationSummary) -> dict[str, float | None]:
    """COCO's twelve numbers, and what is beside them; None where there is nothing to measure."""
    return dict(zip(summary.stat_names, (x if x >= 0 else None for x in summary.stats))) | summary.more


def rounded_down(score: float) -> float:
    """To three digits. A detection with exactly this score is kept by a threshold that is rounded down."""
    return math.floor(1000 * score) / 1000


def write_numbers(path: Path, summary: EvaluationSummary, points: list[OperatingPoint | None], errors: ErrorSplit,
                  facts: Mapping[str, object], weights: str, evaluation: Mapping[str, Any]) -> None:
    """points: of each of the summary's classes. facts, weights, evaluation: see the schema."""
    names = class_names(summary.truth)
    classes = {}
    for (category, score), point in zip(summary.classes.items(), points):
        best = dict.fromkeys(("threshold", "precision", "recall", "f1")) if point is None else {
            "threshold": rounded_down(point.score), "precision": point.precision, "recall": point.recall,
            "f1": point.f1}
        classes[str(category)] = {"name": names[category], "boxes": score.boxes, **score.stats, **best}
    content = {"format": FORMAT, "weights": weights, "facts": {name: str(value) for name, value in facts.items()},
               "evaluation": dict(evaluation), "images": len(summary.detections),
               "boxes": sum(score.boxes for score in summary.classes.values()),
               "stats": measured_stats(summary), "classes": classes,
               "errors": {kind: {"gain": gain, "count": errors.counts[kind]} for kind, gain in errors.gains.items()}}
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def read_numbers(path: Path, weights: str) -> Measured:
    """What a summary.json says of the weights with this checksum. Raises UserError for a file that is missing, damaged,
    of another version, or about other weights."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as a summary.json: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path} is no summary.json of this version: evaluate again with --eval --summary")
    if content.get("weights") != weights:
        raise UserError(f"{path} was measured with other weights: evaluate the checkpoint with --eval --summary")
    try:
        thresholds = {int(i): entry["threshold"] for i, entry in content["classes"].items()}
        if not is_whole(content["images"], 0):
            raise ValueError("images is no number of images")
        facts = dict(content["facts"])
        if not all(isinstance(text, str) for pair in facts.items() for text in pair):
            raise ValueError("facts are no texts")
        return Measured(_known(thresholds), _known(content["stats"]), content["images"], facts,
                        dict(content["evaluation"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is damaged: {type(error).__name__} {error}") from error


def _known(values: Mapping[Any, Any]) -> dict[Any, float]:
    known = {name: value for name, value in values.items() if value is not None}
    wrong = next((value for value in known.values() if not is_number(value, 0, 1)), None)
    if wrong is not None:
        raise ValueError(f"{wrong!r} is no number from 0 to 1")
    return known
