"""What report.html holds: matched detections as packed arrays, and small copies of the images with the worst errors.

Arrays are base64 of little-endian numbers. Boxes are left, upper, right and lower border in units of 1/65535 of the
image's width and height, cut at its border. A size is an index into SIZES, a class one into the report's classes, an
image one into its names.
"""
import base64
import io
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools.coco import COCO

from datasets.coco import class_names
from datasets.coco_eval import MAX_DETECTIONS, EvaluationSummary
from datasets.images import read_image
from reports.drawing import PALETTE
from reports.error_analysis import (
    BOTH,
    CLASSIFICATION,
    CONFIDENT,
    DUPLICATE,
    KINDS,
    LOCALIZATION,
    Matches,
    OperatingPoint,
    annotations_of,
    error_kinds,
    missed_boxes,
)
from reports.numbers import measured_stats, rounded_down
from util.errors import UserError

logger = logging.getLogger(__name__)

LEAST_SCORE = 0.05  # detections below are left out: most are noise, and they are many
PICTURES = 400  # images at most that the file has a small copy of
SIDE, LARGE_SIDE, LARGE_PICTURES = 480, 960, 100  # px, of the longer side; the larger one for few images
SIZES = ("small", "medium", "large")  # as COCO's APs, APm and APl
OUTCOMES = (*KINDS, "found", "ignored")  # of detections; "missed" is one of boxes
FOUND, IGNORED = len(KINDS), len(KINDS) + 1


def page_content(summary: EvaluationSummary, matches: Matches, points: list[OperatingPoint | None],
                 pictures: Mapping[int, bytes], facts: Mapping[str, object]) -> dict[str, Any]:
    """For JSON. points: of each class. pictures: JPEG files by the index of their image. Detections keep the order of
    `matches`, in which scores fall; boxes that are no crowds that of Matches.truth."""
    names, coco = class_names(summary.truth), summary.truth
    images = sorted(summary.detections)
    index = {image: i for i, image in enumerate(images)}
    sizes = np.array([[coco.imgs[image]["width"], coco.imgs[image]["height"]] for image in images],
                     float).reshape(-1, 2)
    shown = matches.only(matches.scores >= LEAST_SCORE)
    at = np.array([index[image] for image in shown.images], int)
    return {
        "facts": {name: str(value) for name, value in facts.items()}, "stats": measured_stats(summary),
        "least_score": LEAST_SCORE, "score": CONFIDENT, "outcomes": OUTCOMES, "sizes": SIZES,
        "beyond_limit": int((~shown.counted).sum()), "limit": MAX_DETECTIONS,
        "left_out": len(matches.scores) - len(shown.scores),
        "classes": [{"name": names[category], "colour": PALETTE[category % len(PALETTE)], "ap": score.stats["AP"],
                     "best_score": None if point is None else rounded_down(point.score)}
                    for (category, score), point in zip(summary.classes.items(), points)],
        "images": {"names": [coco.imgs[image]["file_name"] for image in images], "sizes": packed(sizes, "<u4")},
        "pictures": {str(i): base64.b64encode(jpeg).decode() for i, jpeg in pictures.items()},
        "truth": _annotations(annotations_of(coco, images), matches.categories, sizes),
        "crowds": _annotations(annotations_of(coco, images, crowds=True), matches.categories, sizes),
        "detections": {
            "score": packed(shown.scores, "<f8"), "image": packed(at, "<u4"), "label": packed(shown.labels, "<u2"),
            "box": packed_boxes(shown.bboxes, sizes[at]), "size": packed(size_of(shown.bboxes[:, 2:].prod(1)), "u1"),
            "outcome": packed(outcomes(shown), "u1"), "about": packed(subjects(shown), "<i4"),
            "located": packed(shown.located, "<i4"), "on_crowd": packed(shown.on_crowd, "u1")}}


def outcomes(matches: Matches) -> np.ndarray:
    """Index into OUTCOMES of every detection. [D]"""
    return np.select([matches.found >= 0, matches.ignored], [FOUND, IGNORED], error_kinds(matches))


def subjects(matches: Matches) -> np.ndarray:
    """The box that every detection finds, or fails to find by its kind of error; -1 for none. [D]"""
    kinds = error_kinds(matches)
    return np.select([matches.found >= 0, np.isin(kinds, (LOCALIZATION, DUPLICATE)),
                      np.isin(kinds, (CLASSIFICATION, BOTH))], [matches.found, matches.same, matches.other], -1)


def costs(coco: COCO, detections: Iterable[int | str], matches: Matches) -> np.ndarray:
    """How much is wrong in each image, in rising order of ids: a missed box costs 1, a wrong detection its score, from
    CONFIDENT on. [images]"""
    images = sorted(detections)
    index = {image: i for i, image in enumerate(images)}
    sure = matches.only(matches.scores >= CONFIDENT)
    wrong, cost = error_kinds(sure) >= 0, np.zeros(len(images))
    np.add.at(cost, [index[image] for image in sure.images[wrong]], sure.scores[wrong])
    np.add.at(cost, _images_of(annotations_of(coco, images))[missed_boxes(sure)], 1)
    return cost


def read_pictures(coco: COCO, images: Sequence[int | str], cost: np.ndarray, folder: Path) -> dict[int, bytes]:
    """JPEG copies of the images of highest cost, by index, from files below `folder`. Those that cannot be read are
    left out, and the log says so."""
    side = LARGE_SIDE if len(images) <= LARGE_PICTURES else SIDE
    pictures, errors = {}, []
    for i in np.argsort(-cost, kind="stable")[:PICTURES].tolist():
        listed = coco.imgs[images[i]]
        try:
            image = read_image(folder / listed["file_name"], (listed["width"], listed["height"]))
            pictures[i] = _jpeg(image, side)
        except UserError as error:  # the file changed since the evaluation
            errors.append(error)
    if errors:
        logger.warning("report.html lacks the pictures of %d images: %s", len(errors), errors[0])
    return pictures


def size_of(areas: np.ndarray) -> np.ndarray:
    """Index into SIZES of areas in px²."""
    return (areas >= 32**2).astype(int) + (areas > 96**2)


def packed(values: Any, kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype=kind).tobytes()).decode()


def packed_boxes(boxes: np.ndarray, sizes: np.ndarray) -> str:
    """boxes [n, 4] xywh px; sizes [n, 2] of their images."""
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1) / np.tile(sizes, 2)
    return packed((np.nan_to_num(corners).clip(0, 1) * 65535).round(), "<u2")


def _annotations(by_image: list[list[dict]], categories: list[int], sizes: np.ndarray) -> dict[str, str]:
    rows, at = [row for part in by_image for row in part], _images_of(by_image)
    boxes = np.array([row["bbox"] for row in rows], float).reshape(-1, 4)
    labels = np.searchsorted(categories, np.array([row["category_id"] for row in rows], int))
    return {"image": packed(at, "<u4"), "label": packed(labels, "<u2"),
            "box": packed_boxes(boxes, sizes[at]),
            "size": packed(size_of(np.array([row["area"] for row in rows], float)), "u1")}


def _images_of(by_image: list[list[dict]]) -> np.ndarray:
    """The index of the image of each annotation."""
    return np.repeat(np.arange(len(by_image)), [len(part) for part in by_image])


def _jpeg(image: Image.Image, side: int) -> bytes:
    image.thumbnail((side, side), reducing_gap=2.0)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=70, optimize=True)
    return file.getvalue()
