"""LVIS's average precision, as COCO's of other ground truth and fewer detections.

LVIS: A Dataset for Large Vocabulary Instance Segmentation. A. Gupta, P. Dollár, R. Girshick. CVPR 2019, section 3. In
an image only some classes have been looked for: those with annotations, and the negative ones, which are known not to
be there. Detections of other classes do not count. Of a class that is not exhaustively annotated in an image, wrong
detections do not count there either: for COCO's rules, a crowd of it covers the whole image. At most 300 detections
count in an image, over all classes.
"""
import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.coco import COCO

from datasets.benchmark_facts import NEGATIVE, NOT_EXHAUSTIVE
from datasets.evaluation.arrays import DetectionArrays, GroundTruth, rank_in_group
from datasets.evaluation.curves import Curves, mean_measured

MAX_DETECTIONS = 300  # in an image
FREQUENCIES = {"r": "APr", "c": "APc", "f": "APf"}  # rare, common, frequent: images of the training set with the class
FAR = 1e7  # px: no box of an image ends beyond


@dataclass(frozen=True)
class FederatedLabels:
    """What LVIS says of images and classes beside the annotations; images and classes are indices."""

    negative: np.ndarray  # [n, 2] (image, class) that is known not to be there
    not_exhaustive: np.ndarray  # [n, 2] (image, class) with objects that are not annotated
    frequency: np.ndarray  # [K] "r", "c" or "f"

    @classmethod
    def of_coco(cls, coco: COCO, truth: GroundTruth) -> "FederatedLabels":
        """Classes that an image names and the file lacks do not count."""
        index = {category: label for label, category in enumerate(truth.categories)}

        def pairs(name: str) -> np.ndarray:
            found = [(i, index[category]) for i, image_id in enumerate(truth.images)
                     for category in coco.imgs[image_id].get(name, []) if category in index]
            return np.array(found, int).reshape(-1, 2)

        return cls(pairs(NEGATIVE), pairs(NOT_EXHAUSTIVE),
                   np.array([str(coco.cats[category].get("frequency", "")) for category in truth.categories]))


def is_lvis(coco: COCO) -> bool:
    """Whether an annotation file is LVIS's: its classes have a frequency, and its images classes that were not found or
    not exhaustively annotated."""
    return (any("frequency" in category for category in coco.cats.values())
            and any(NEGATIVE in image or NOT_EXHAUSTIVE in image for image in coco.imgs.values()))


def federated(truth: GroundTruth, labels: FederatedLabels, detections: DetectionArrays, limit: int = MAX_DETECTIONS
              ) -> tuple[GroundTruth, DetectionArrays]:
    """Ground truth and detections of which COCO's rules measure LVIS's numbers. limit: of detections in an image."""
    classes = len(truth.categories)

    def keys(image: np.ndarray, label: np.ndarray) -> np.ndarray:
        return image * classes + label

    best = rank_in_group(detections.image, detections.scores) < limit
    key = keys(detections.image, detections.label)
    known = np.isin(key, np.concatenate([keys(truth.image, truth.label), keys(*labels.negative.T)]))
    has_area = (detections.boxes[:, 2:] > 0).all(1)  # the lvis package leaves the others out
    return _with_crowds(truth, labels.not_exhaustive), detections.only(best & known & has_area)


def judged_rows(coco: COCO, image_id: Any, rows: list[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    """The detections of an image, as rows of COCO's result format, that `federated` keeps."""
    best = sorted(rows, key=lambda row: -row["score"])[:limit]
    known = {a["category_id"] for a in coco.imgToAnns[image_id]} | set(coco.imgs[image_id].get(NEGATIVE, []))
    return [row for row in best if row["category_id"] in known and min(row["bbox"][2:]) > 0]


def frequency_stats(curves: Curves, labels: FederatedLabels) -> dict[str, float | None]:
    """APr, APc and APf in [0, 1], None where nothing can be measured."""
    return {name: mean_measured(curves.precision[:, :, labels.frequency == letter, 0])
            for letter, name in FREQUENCIES.items()}


def _with_crowds(truth: GroundTruth, pairs: np.ndarray) -> GroundTruth:
    """The ground truth with a crowd for each (image, class) that contains any box."""
    image, label = pairs.T
    more = len(pairs)
    order = np.argsort(np.concatenate([truth.image, image]), kind="stable")

    def joined(values: np.ndarray, added: np.ndarray) -> np.ndarray:
        return np.concatenate([values, added])[order]

    return dataclasses.replace(
        truth, image=joined(truth.image, image), label=joined(truth.label, label),
        boxes=joined(truth.boxes, np.tile([-FAR, -FAR, 2 * FAR, 2 * FAR], (more, 1))),
        areas=joined(truth.areas, np.full(more, 4 * FAR**2)), crowd=joined(truth.crowd, np.ones(more, bool)),
        ignore=joined(truth.ignore, np.zeros(more, bool)))
