"""COCO average precision (pycocotools), each image counted once whatever the number of processes."""
import contextlib
import copy
import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from datasets.coco import class_names
from util.distributed import all_gather, is_main

STATS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
CLASS_STATS = STATS[:6]


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

    def precision(self, iou: float) -> np.ndarray:
        """Precision at the recalls 0, 0.01 .. 1 of every class by rising category id, after `summarize`: [101, K].

        iou: 0.5, 0.55 .. 0.95. A class without boxes has -1.
        """
        return self.result.eval["precision"][np.isclose(self.result.params.iouThrs, iou), :, :, 0, -1][0]

    def class_numbers(self) -> dict[int, dict[str, float | None]]:
        """By category id: CLASS_STATS in [0, 1], None where nothing can be measured, and "boxes"; after `summarize`."""
        params = self.result.params
        precision = self.result.eval["precision"][..., -1]  # [IoU, recall, class, size], with the most detections
        boxes = Counter(a["category_id"] for i in self.detections for a in self.coco.imgToAnns[i] if not a["iscrowd"])
        numbers = {}
        for i, category in enumerate(params.catIds):
            whole, *sizes = (precision[:, :, i, size] for size in range(len(params.areaRngLbl)))
            at50, at75 = (whole[np.isclose(params.iouThrs, iou)] for iou in (0.5, 0.75))
            numbers[category] = dict(zip(CLASS_STATS, map(_mean, (whole, at50, at75, *sizes))))
            numbers[category]["boxes"] = boxes[category]
        return numbers

    def per_class(self) -> str:
        """CLASS_STATS (%) and ground-truth boxes of every class as a table, after `summarize`."""
        names = class_names(self.coco)
        lines = [f"{'class':<24}" + "".join(f"{name:>7}" for name in CLASS_STATS) + f"{'boxes':>8}"]
        for category, numbers in self.class_numbers().items():
            cells = (f"{'-':>7}" if numbers[name] is None else f"{100 * numbers[name]:>7.1f}" for name in CLASS_STATS)
            lines.append(f"{names[category]:<24}{''.join(cells)}{numbers['boxes']:>8}")
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
