"""A small set with every kind of error, of all sizes, and its report.html."""
import contextlib
import io
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools.coco import COCO

from datasets.coco_eval import summarize
from reports.error_analysis import Matches, match_detections, operating_points
from reports.page.builder import write_page

CLASSES = {2: "cat", 5: "dog", 9: "<i>bird</i>"}
WIDTH, HEIGHT = 400, 300


def coco_of(names, annotations, classes=CLASSES) -> COCO:
    """names: of the images 1, 2 ...; annotations: (image, class, xywh, crowd)."""
    coco = COCO()
    coco.dataset = {
        "info": {}, "categories": [{"id": i, "name": name} for i, name in classes.items()],
        "images": [{"id": i, "file_name": name, "width": WIDTH, "height": HEIGHT} for i, name in enumerate(names, 1)],
        "annotations": [{"id": i, "image_id": image, "category_id": label, "bbox": list(box), "area": box[2] * box[3],
                         "iscrowd": int(crowd)} for i, (image, label, box, crowd) in enumerate(annotations, 1)]}
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def scene(images=10, seed=0):
    """A ground truth of random boxes, and detections near and far from them, by image."""
    rng = np.random.default_rng(seed)

    def box():
        width, height = rng.choice([18, 60, 140], p=[0.3, 0.4, 0.3]) * rng.uniform(0.8, 1.2, 2)
        return [*rng.uniform(0, (WIDTH - width, HEIGHT - height)).tolist(), float(width), float(height)]

    def label():
        return int(rng.choice(list(CLASSES)))

    annotations, detections = [], {}
    for image in range(1, images + 1):
        truth = [(image, label(), box(), rng.random() < 0.1) for _ in range(6)]
        rows = [(label(), box()) for _ in range(4)]
        for _, name, (x, y, w, h), _ in truth:
            for _ in range(rng.integers(0, 3)):
                shift = rng.choice([0.02, 0.1, 0.4])
                rows.append((name if rng.random() < 0.8 else label(), [x + shift * w, y, w, h]))
        sure = [0] * 4 + [0.4] * (len(rows) - 4)
        scores = np.round(sure + rng.uniform(0, 0.6, len(rows)), 2).tolist()  # some are equal, and some at a threshold
        detections[image] = [{"image_id": image, "category_id": name, "bbox": place, "score": score}
                             for (name, place), score in zip(rows, scores)]
        annotations += truth
    return coco_of([f"{'ab'[i % 2]}{i}.png" for i in range(1, images + 1)], annotations), detections


def write_report(folder: Path, coco: COCO, detections, pictures=True, facts=None) -> tuple[Path, Matches]:
    """The path of report.html and what it shows; grey pictures below `folder` where there are no others."""
    for image in coco.imgs.values() if pictures else ():
        if not (folder / image["file_name"]).exists():
            Image.new("RGB", (image["width"], image["height"]), "grey").save(folder / image["file_name"])
    matches = match_detections(coco, detections)
    write_page(folder / "report.html", summarize(coco, detections), matches, operating_points(matches), folder,
               facts or {})
    return folder / "report.html", matches
