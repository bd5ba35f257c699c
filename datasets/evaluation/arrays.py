"""Ground truth and detections as the evaluators read them: plain arrays, whatever ids the data set has.

N images and K classes in rising order of their ids, G annotations, D detections. Images and classes are indices.
"""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from pycocotools.coco import COCO


@dataclass(frozen=True)
class GroundTruth:
    """The annotations of the images that are evaluated. Those of one image are in the order of the annotation file."""

    images: Sequence[Any]  # [N] ids, rising
    categories: Sequence[int]  # [K] ids, rising
    sizes: np.ndarray  # [N, 2] width and height, px; inf where they are not known
    image: np.ndarray  # [G] index of the image, rising
    label: np.ndarray  # [G] index of the class
    boxes: np.ndarray  # [G, 4] xywh px
    areas: np.ndarray  # [G] px², for the split into small, medium and large
    crowd: np.ndarray  # [G] bool: a region with many objects
    ignore: np.ndarray  # [G] bool: not to be found, and no mistake if it is; read by CrowdHuman's metrics only

    @classmethod
    def of_coco(cls, coco: COCO, images: Sequence[Any]) -> "GroundTruth":
        """images: ids, in any order."""
        images, categories = sorted(images), sorted(coco.cats)
        groups = [coco.imgToAnns[i] for i in images]
        rows = [annotation for group in groups for annotation in group]
        listed = [coco.imgs[i] for i in images]
        return cls(
            images, categories,
            np.array([(image.get("width", np.inf), image.get("height", np.inf)) for image in listed],
                     float).reshape(-1, 2),
            np.repeat(np.arange(len(images)), [len(group) for group in groups]),
            _indices(categories, [row["category_id"] for row in rows]),
            np.array([row["bbox"] for row in rows], float).reshape(-1, 4),
            np.array([row["area"] for row in rows], float),
            np.array([bool(row["iscrowd"]) for row in rows], bool),
            np.array([bool(row.get("ignore", 0)) for row in rows], bool))

    @cached_property
    def objects(self) -> np.ndarray:
        """Annotations of every class that are no crowds, [K]."""
        return np.bincount(self.label[~self.crowd], minlength=len(self.categories))


@dataclass(frozen=True)
class DetectionArrays:
    """The detections of the images of a GroundTruth, those of one image in the order of the detector."""

    image: np.ndarray  # [D] index of the image, rising
    label: np.ndarray  # [D] index of the class
    boxes: np.ndarray  # [D, 4] xywh px
    scores: np.ndarray  # [D]

    @classmethod
    def of_rows(cls, truth: GroundTruth, detections: Mapping[Any, list[dict[str, Any]]]) -> "DetectionArrays":
        """From rows of COCO's result format by image id. Rows of other categories than the truth's do not count."""
        groups = [detections[i] for i in truth.images]
        rows = [row for group in groups for row in group]
        arrays = cls(np.repeat(np.arange(len(groups)), [len(group) for group in groups]),
                     _indices(truth.categories, [row["category_id"] for row in rows]),
                     np.array([row["bbox"] for row in rows], float).reshape(-1, 4),
                     np.array([row["score"] for row in rows], float))
        return arrays if (arrays.label >= 0).all() else arrays.only(arrays.label >= 0)

    def only(self, chosen: np.ndarray) -> "DetectionArrays":
        """Some of them; chosen: [D] bool, or indices."""
        return DetectionArrays(self.image[chosen], self.label[chosen], self.boxes[chosen], self.scores[chosen])


def _indices(categories: Sequence[int], ids: list[int]) -> np.ndarray:
    """The index of every id in `categories`, -1 where it is not there."""
    index = {category: i for i, category in enumerate(categories)}
    return np.array([index.get(i, -1) for i in ids], int)


def rank_in_group(groups: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """How many members of its group come before each [n] by descending score; equal scores in the order they have."""
    order = np.lexsort((-scores, groups))
    first = np.searchsorted(groups[order], groups[order])
    rank = np.empty(len(groups), int)
    rank[order] = np.arange(len(groups)) - first
    return rank
