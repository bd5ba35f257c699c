"""COCO average precision (pycocotools), each image counted once whatever the number of processes."""
import contextlib
import copy
import io
import json
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from datasets.coco import class_names
from util.distributed import all_gather, is_main

STATS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


class CocoEvaluator:
    """Collects detections batch by batch; `synchronize`, then `summarize` on the main process."""

    def __init__(self, coco: COCO):
        self.coco = coco
        self.detections: dict[int, list[dict]] = {}  # by image id, in COCO's result format
        self.result: COCOeval | None = None
        self.table = ""

    def update(self, image_ids: list[int], results: list[dict[str, Tensor]]) -> None:
        """results: the post-processor's "scores", "labels", "boxes" (xyxy px), an entry an image."""
        for image_id, result in zip(image_ids, results):
            boxes = result["boxes"].double().cpu().clone()
            boxes[:, 2:] -= boxes[:, :2]
            rows = zip(result["scores"].tolist(), result["labels"].tolist(), boxes.tolist())
            self.detections[image_id] = [{"image_id": image_id, "category_id": label, "bbox": box, "score": score}
                                         for score, label, box in rows if label in self.coco.cats]

    def synchronize(self) -> None:
        """Gives every process the detections of all."""
        for part in all_gather(self.detections):
            self.detections.update(part)

    def summarize(self) -> list[float]:
        """COCO's twelve numbers (see STATS; -1 where nothing can be measured) over the images that were seen."""
        dataset = {key: self.coco.dataset[key] for key in ("info", "images", "categories")}
        results = copy.copy(self.coco)
        results.dataset = dataset | {"annotations": [
            d | {"id": i + 1, "area": d["bbox"][2] * d["bbox"][3], "iscrowd": 0} for i, d in enumerate(self.rows())]}
        text = io.StringIO()
        with contextlib.redirect_stdout(text):
            results.createIndex()
            self.result = COCOeval(self.coco, results, "bbox")
            self.result.params.imgIds = sorted(self.detections)
            self.result.evaluate()
            self.result.accumulate()
            text.truncate(0), text.seek(0)
            self.result.summarize()
        self.table = text.getvalue()
        return [float(x) for x in self.result.stats]

    def per_class(self) -> str:
        """A table of AP and AP50 (%) and ground-truth boxes of every class, after `summarize`."""
        precision = self.result.eval["precision"][:, :, :, 0, -1]  # [IoU, recall, class], all sizes, most detections
        names = class_names(self.coco)
        seen = set(self.detections)
        lines = [f"{'class':<24}{'AP':>7}{'AP50':>7}{'boxes':>8}"]
        for i, category in enumerate(self.result.params.catIds):
            boxes = sum(a["image_id"] in seen and not a["iscrowd"]
                        for a in self.coco.loadAnns(self.coco.getAnnIds(catIds=[category])))
            measured = [_mean(precision[:, :, i]), _mean(precision[0, :, i])]
            cells = "".join(f"{'-':>7}" if x is None else f"{100 * x:>7.1f}" for x in measured)
            lines.append(f"{names[category]:<24}{cells}{boxes:>8}")
        return "\n".join(lines)

    def rows(self) -> list[dict]:
        """All detections in COCO's result format (boxes as xywh px)."""
        return [row for image_id in sorted(self.detections) for row in self.detections[image_id]]

    def save_results(self, path: Path) -> None:
        """Writes a COCO results file from the main process."""
        if is_main():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(self.rows()))


def _mean(precision: np.ndarray) -> float | None:
    measured = precision[precision > -1]
    return float(measured.mean()) if measured.size else None
