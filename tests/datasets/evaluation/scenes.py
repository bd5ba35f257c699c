"""Random ground truth and detections that resemble it, and what published programs said of such."""
import json
from pathlib import Path

import numpy as np

from datasets.evaluation.arrays import DetectionArrays, GroundTruth

GOLDEN = Path(__file__).parents[2] / "golden"
SIDES = [8, 16, 31, 32, 33, 64, 95, 96, 97, 120]  # around COCO's limits of sizes, which are 32² and 96² px²


def scene(seed, images=6, classes=4, boxes=40, detections=300, *, crowds=0.0, ties=False, limits=False, whole=False,
          exact=False, first_id=0):
    """The last class has no ground truth. crowds: their share. ties: few different scores. limits: areas at the limits
    of the sizes. whole: integer coordinates. exact: half of the found boxes do not differ from the truth."""
    rng = np.random.default_rng(seed)

    def some(count):
        start = rng.integers(0, 100, (count, 2)) if whole else rng.uniform(0, 100, (count, 2))
        return np.concatenate([start, rng.choice(SIDES, (count, 2)) if limits else rng.uniform(4, 150, (count, 2))], 1)

    image, label, truth = np.sort(rng.integers(0, images, boxes)), rng.integers(0, classes - 1, boxes), some(boxes)
    areas = truth[:, 2:].prod(1) * (1 if limits else rng.uniform(0.5, 1, boxes))
    at, found = np.sort(rng.integers(0, images, detections)), some(detections)
    what = rng.integers(0, classes, detections)
    for i in range(detections):
        near = np.flatnonzero(image == at[i])
        if len(near) and rng.random() < 0.8:
            box = rng.choice(near)
            shift = rng.integers(-6, 7, 4) if whole else rng.normal(0, 6, 4)
            found[i] = truth[box] + (0 if exact and rng.random() < 0.5 else shift)
            what[i] = label[box] if rng.random() < 0.9 else what[i]
    found[:, 2:] = found[:, 2:].clip(1)
    scores = rng.random(detections)
    return (GroundTruth([first_id + i for i in range(images)], [10 * i for i in range(classes)],
                        np.full((images, 2), 250.0), image, label, truth, areas, rng.random(boxes) < crowds,
                        np.zeros(boxes, bool)),
            DetectionArrays(at, what, found, np.round(4 * scores) / 4 if ties else scores))


def recorded(name):
    """(entry, ground truth, detections) of each scene in a file of tests/golden. Its images and classes are numbered;
    "results" is what the published program says."""
    for entry in json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8")):
        truth, found, images = entry["truth"], entry["detections"], entry["images"]
        ignore = np.array(truth["ignore"], bool)
        yield entry, GroundTruth(
            range(images), range(entry["classes"]), np.array(entry.get("sizes", [[640, 640]] * images), float),
            np.array(truth["image"]), np.array(truth["label"]), np.array(truth["boxes"], float),
            np.array(truth["areas"]), np.zeros(len(ignore), bool), ignore), DetectionArrays(
            np.array(found["image"]), np.array(found["label"]), np.array(found["boxes"], float),
            np.array(found["scores"]))
