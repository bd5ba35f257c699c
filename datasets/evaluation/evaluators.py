"""Programs that compute COCO's precision and recall. pycocotools is the judge of the others.

Each is a function of ground truth, detections and three rising limits of detections per image and class. All get
images, classes and annotations numbered from 1, in the order of their ids: pycocotools takes a match with the
annotation 0 for no match, and others want ids of a certain type.
"""
import contextlib
import importlib.util
import io
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from datasets.evaluation.arrays import DetectionArrays, GroundTruth
from datasets.evaluation.curves import Curves
from util.optional import require

logger = logging.getLogger(__name__)
Limits = tuple[int, int, int]
JUDGE = "pycocotools"


def by_pycocotools(truth: GroundTruth, detections: DetectionArrays, limits: Limits) -> Curves:
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(_filled(COCO(), truth, truth_rows(truth)),
                              _filled(COCO(), truth, detection_rows(detections)), "bbox")
        evaluation.params.maxDets = list(limits)
        evaluation.evaluate()
        evaluation.accumulate()
    return Curves(evaluation.eval["precision"][..., -1], evaluation.eval["recall"])


def by_faster_coco_eval(truth: GroundTruth, detections: DetectionArrays, limits: Limits) -> Curves:
    from faster_coco_eval import COCO, COCOeval_faster

    evaluation = COCOeval_faster(_filled(COCO(), truth, truth_rows(truth)),
                                 _filled(COCO(), truth, detection_rows(detections)), "bbox",
                                 print_function=lambda *_: None)
    evaluation.params.maxDets = list(limits)
    evaluation.evaluate()
    evaluation.accumulate()
    return Curves(evaluation.eval["precision"][..., -1], evaluation.eval["recall"])


def by_hotcoco(truth: GroundTruth, detections: DetectionArrays, limits: Limits) -> Curves:
    import hotcoco

    images, categories = _listed(truth)
    annotated = hotcoco.COCO.from_arrays(
        images, categories, truth.image + 1, truth.label + 1, truth.boxes,
        ids=np.arange(1, len(truth.image) + 1), area=truth.areas, iscrowd=truth.crowd.astype(int))
    found = annotated.load_res(np.column_stack([detections.image + 1, detections.boxes, detections.scores,
                                                detections.label + 1]))
    evaluation = hotcoco.COCOeval(annotated, found, "bbox")
    evaluation.params.max_dets = list(limits)
    evaluation.evaluate()
    evaluation.accumulate()
    measured: Any = evaluation.eval
    return Curves(measured["precision"][..., -1], measured["recall"])


EVALUATORS: dict[str, Callable[[GroundTruth, DetectionArrays, Limits], Curves]] = {  # the fastest first
    "hotcoco": by_hotcoco, "faster_coco_eval": by_faster_coco_eval, "pycocotools": by_pycocotools}


def chosen(name: str) -> str:
    """The name of an evaluator; of the fastest that is installed for "auto". Raises UserError if it is not installed.
    """
    if name == "auto":
        return next(package for package in EVALUATORS if importlib.util.find_spec(package) is not None)
    require(name)
    return name


def measure(truth: GroundTruth, detections: DetectionArrays, limits: Limits, name: str = "auto") -> tuple[Curves, str]:
    """Precision and recall, and the evaluator that measured them. In place of one that "auto" chose and that fails,
    pycocotools does, and the log says so."""
    evaluator = chosen(name)
    try:
        return EVALUATORS[evaluator](truth, detections, limits), evaluator
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # of an optional package, of any version; a panic in Rust is no Exception
        if name != "auto" or evaluator == JUDGE:
            raise
        logger.warning("%s failed, and %s evaluates in its place: %s: %s", evaluator, JUDGE, type(error).__name__,
                       error)
        return EVALUATORS[JUDGE](truth, detections, limits), JUDGE


def truth_rows(truth: GroundTruth) -> list[dict[str, Any]]:
    columns = zip(truth.image.tolist(), truth.label.tolist(), truth.boxes.tolist(), truth.areas.tolist(),
                  truth.crowd.tolist())
    return [{"id": number, "image_id": image + 1, "category_id": label + 1, "bbox": box, "area": area,
             "iscrowd": int(crowd)} for number, (image, label, box, area, crowd) in enumerate(columns, 1)]


def detection_rows(detections: DetectionArrays) -> list[dict[str, Any]]:
    columns = zip(detections.image.tolist(), detections.label.tolist(), detections.boxes.tolist(),
                  detections.scores.tolist())
    return [{"id": number, "image_id": image + 1, "category_id": label + 1, "bbox": box, "area": box[2] * box[3],
             "iscrowd": 0, "score": score} for number, (image, label, box, score) in enumerate(columns, 1)]


def _listed(truth: GroundTruth) -> tuple[list[dict], list[dict]]:
    """Images and classes with what the programs demand of them; the size of an image means nothing for boxes."""
    images = [{"id": i, "file_name": "", "width": 1, "height": 1} for i in range(1, len(truth.images) + 1)]
    return images, [{"id": i, "name": str(i)} for i in range(1, len(truth.categories) + 1)]


def _filled(coco: Any, truth: GroundTruth, rows: list[dict[str, Any]]) -> Any:
    """An empty COCO object with the images and classes of `truth` and these annotations."""
    images, categories = _listed(truth)
    coco.dataset = {"info": {}, "images": images, "categories": categories, "annotations": rows}
    coco.createIndex()
    return coco
