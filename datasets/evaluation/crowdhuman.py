"""CrowdHuman's numbers: the log-average miss rate MR-2 (less is better), and average precision with ignored regions.

CrowdHuman: A Benchmark for Detecting Human in a Crowd. S. Shao et al. 2018, arXiv 1805.00123; the miss rate is that of
Pedestrian Detection: An Evaluation of the State of the Art. P. Dollár et al. PAMI 2012. Where the papers leave
something open, it is as in the published program (github.com/Purkialo/CrowdDet, lib/evaluate), which mmdetection's
CrowdHumanMetric follows.
"""
from dataclasses import dataclass

import numpy as np
from pycocotools import mask
from pycocotools.coco import COCO

from datasets.benchmark_facts import HAS_VISIBLE
from datasets.evaluation.arrays import DetectionArrays, GroundTruth

IOU = 0.5  # above which a detection finds a person, and the share of it above which it lies on an ignored region
FALSE_POSITIVES = (0.0100, 0.0178, 0.0316, 0.0562, 0.1000, 0.1778, 0.3162, 0.5623, 1.0000)  # per image


@dataclass(frozen=True)
class PersonMatches:
    """The detections of one class that are not ignored, in descending order of score, and what they find."""

    found: np.ndarray  # [D] bool: finds a person that no better one finds
    persons: int  # to be found
    images: int

    def miss_rate(self) -> float | None:
        """MR-2 in [0, 1]: the geometric mean of the miss rates at FALSE_POSITIVES. None without a person to find."""
        if not self.persons:
            return None
        if not len(self.found):
            return 1.0
        missed = 1 - np.cumsum(self.found) / self.persons
        false_positives = np.cumsum(~self.found) / self.images
        at = np.minimum(np.searchsorted(false_positives, FALSE_POSITIVES), len(missed) - 1)
        with np.errstate(divide="ignore"):  # nothing missed: 0
            return float(np.exp(np.log(missed[at]).mean()))

    def average_precision(self) -> float | None:
        """The area below the line through all points of precision over recall, in [0, 1]."""
        if not self.persons:
            return None
        hits = np.cumsum(self.found)
        precision = hits / np.arange(1, len(hits) + 1)
        return float((np.diff(hits) / self.persons * (precision[1:] + precision[:-1]) / 2).sum())


def is_crowdhuman(coco: COCO) -> bool:
    """Whether an annotation file says what is visible of the objects, as those of CrowdHuman and CityPersons do."""
    return coco.dataset.get("info", {}).get(HAS_VISIBLE, False)


def crowdhuman_stats(truth: GroundTruth, detections: DetectionArrays) -> dict[str, float | None]:
    """"MR-2" and "AP50-CrowdHuman" in [0, 1], means over the classes; None where nothing can be measured.

    All detections count, however many they are. Crowds and ignored boxes need not be found.
    """
    matches = [match_persons(truth, detections, label) for label in range(len(truth.categories))]

    def mean(values: list[float | None]) -> float | None:
        measured = [value for value in values if value is not None]
        return float(np.mean(measured)) if measured else None

    return {"MR-2": mean([m.miss_rate() for m in matches]),
            "AP50-CrowdHuman": mean([m.average_precision() for m in matches])}


def match_persons(truth: GroundTruth, detections: DetectionArrays, label: int) -> PersonMatches:
    """What the detections of one class find. Boxes end at the border of their image."""
    ours, theirs = np.flatnonzero(detections.label == label), np.flatnonzero(truth.label == label)
    ours = ours[np.lexsort((-detections.scores[ours], detections.image[ours]))]
    boxes = _clipped(detections.boxes[ours], truth.sizes[detections.image[ours]])
    annotated = _clipped(truth.boxes[theirs], truth.sizes[truth.image[theirs]])
    ignore = (truth.ignore | truth.crowd)[theirs]
    images = np.arange(len(truth.images) + 1)
    mine, yours = (np.searchsorted(image, images) for image in (detections.image[ours], truth.image[theirs]))
    outcomes = [_match_image(boxes[a:b], annotated[c:d], ignore[c:d])
                for a, b, c, d in zip(mine[:-1], mine[1:], yours[:-1], yours[1:])]
    outcome = np.concatenate([*outcomes, np.zeros(0, int)])
    order = np.argsort(-detections.scores[ours], kind="stable")
    outcome = outcome[order]
    return PersonMatches(outcome[outcome >= 0] == 1, int((~ignore).sum()), len(truth.images))


def _match_image(boxes: np.ndarray, annotated: np.ndarray, ignore: np.ndarray) -> np.ndarray:
    """For boxes [d, 4] of one image, by falling score: 1 finds one of `annotated` [g, 4], 0 finds none, -1 is ignored.
    """
    overlap = np.array(mask.iou(boxes, annotated, ignore), float).reshape(len(boxes), len(annotated))
    outcome = np.where((overlap[:, ignore] > IOU).any(1), -1, 0)
    free = np.where(overlap > IOU, overlap, 0)[:, ~ignore]
    for row in np.flatnonzero(free.any(1)):
        best = free[row].argmax()
        if free[row, best]:
            outcome[row] = 1
            free[:, best] = 0
    return outcome


def _clipped(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Boxes [n, 4] xywh px cut at the border of their images, of `sizes` [n, 2]."""
    start = boxes[:, :2].clip(0).clip(max=sizes - 1)
    end = (boxes[:, :2] + boxes[:, 2:]).clip(0).clip(max=sizes)
    return np.concatenate([start, (end - start).clip(0)], 1)
