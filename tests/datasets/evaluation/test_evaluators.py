"""pycocotools is the judge of the faster programs: equal numbers, whatever is difficult about the data."""
import contextlib
import io
import logging

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from datasets.evaluation.evaluators import EVALUATORS, JUDGE, chosen, detection_rows, measure, truth_rows
from tests.datasets.evaluation.scenes import scene
from util.errors import UserError

FAST = [name for name in EVALUATORS if name != JUDGE]
LIMITS = (1, 10, 100)
NOTHING = np.zeros(0, bool)
SCENES = {
    "plain": {}, "crowds": {"crowds": 0.3, "ties": True}, "ties": {"ties": True, "whole": True, "exact": True},
    "areas at the limits": {"limits": True, "whole": True, "exact": True, "crowds": 0.1},
    "more than 100 detections": {"images": 2, "classes": 2, "boxes": 300, "detections": 700},
    "more than 100 objects of a class": {"images": 1, "classes": 2, "boxes": 150, "detections": 400, "ties": True},
    "classes without ground truth": {"classes": 20, "boxes": 5}, "64-bit ids": {"first_id": 2**62},
    "one detection": {"detections": 1}, "an image": {"images": 1},
    "crowds only": {"crowds": 1.1},
}


@pytest.mark.parametrize("kind", SCENES)
@pytest.mark.parametrize("seed, most", [(0, 100), (1, 300)])
def test_fast_evaluators_measure_what_pycocotools_does(kind, seed, most):
    truth, detections = scene(seed, **SCENES[kind])
    wanted = EVALUATORS[JUDGE](truth, detections, (1, 10, most))
    assert wanted.precision.shape == (10, 101, len(truth.categories), 4)
    assert 0 < wanted.stats()[0] < 1 or kind == "one detection" or kind == "crowds only" and wanted.stats()[0] == -1
    for name in FAST:
        curves = EVALUATORS[name](truth, detections, (1, 10, most))
        assert curves.precision.shape == wanted.precision.shape and curves.recall.shape == wanted.recall.shape
        assert np.abs(curves.precision - wanted.precision).max() < 1e-12
        assert np.abs(curves.recall - wanted.recall).max() < 1e-12
        assert curves.stats() == pytest.approx(wanted.stats(), abs=1e-12)


@pytest.mark.parametrize("name", EVALUATORS)
@pytest.mark.parametrize("with_truth, with_detections", [(True, False), (False, True), (False, False)])
def test_nothing_to_find_and_nothing_found(name, with_truth, with_detections):
    truth, detections = scene(0)
    if not with_truth:
        none = slice(0, 0)
        truth = truth.__class__(truth.images, truth.categories, truth.sizes, truth.image[none], truth.label[none],
                                truth.boxes[none], truth.areas[none], truth.crowd[none], truth.ignore[none])
    if not with_detections:
        detections = detections.only(np.zeros(len(detections.image), bool))
    stats = EVALUATORS[name](truth, detections, LIMITS).stats()
    assert stats == pytest.approx([0.0 if with_truth else -1.0] * 12)


@pytest.mark.parametrize("name", EVALUATORS)
def test_no_image(name):
    truth, detections = scene(0, boxes=0, detections=0)
    truth = truth.__class__([], truth.categories, truth.sizes[:0], *([truth.image] * 2), truth.boxes, truth.areas,
                            NOTHING, NOTHING)
    assert EVALUATORS[name](truth, detections, LIMITS).stats() == (-1.0,) * 12


@pytest.mark.parametrize("name", EVALUATORS)
def test_the_numbers_are_those_that_pycocotools_prints_of_the_same_rows(name):
    truth, detections = scene(1, crowds=0.1)
    coco = COCO()
    coco.dataset = {"info": {}, "images": [{"id": i + 1} for i in range(6)],
                    "categories": [{"id": i + 1} for i in range(4)], "annotations": truth_rows(truth)}
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(detection_rows(detections)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert EVALUATORS[name](truth, detections, LIMITS).stats() == pytest.approx(evaluation.stats, abs=1e-12)


def test_the_fastest_that_is_installed_is_chosen(monkeypatch):
    installed = set(EVALUATORS)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name in installed or None)
    assert chosen("auto") == "hotcoco" == list(EVALUATORS)[0]
    assert chosen("pycocotools") == "pycocotools"
    installed.remove("hotcoco")
    assert chosen("auto") == "faster_coco_eval"
    installed.remove("faster_coco_eval")
    assert chosen("auto") == JUDGE
    with pytest.raises(UserError, match="this needs hotcoco: pip install hotcoco"):
        chosen("hotcoco")


class Panic(BaseException):
    """As hotcoco, which is written in Rust, would raise."""


@pytest.mark.parametrize("kind", [RuntimeError, ImportError, AttributeError, Panic])
def test_where_the_chosen_one_fails_pycocotools_evaluates(monkeypatch, caplog, kind):
    truth, detections = scene(0)
    wanted = measure(truth, detections, LIMITS, JUDGE)[0].stats()

    def fails(*arguments):
        raise kind("another version")

    monkeypatch.setattr("datasets.evaluation.evaluators.chosen", lambda name: "hotcoco")
    monkeypatch.setitem(EVALUATORS, "hotcoco", fails)
    with caplog.at_level(logging.WARNING):
        curves, evaluator = measure(truth, detections, LIMITS)
    assert evaluator == JUDGE and curves.stats() == wanted
    assert f"hotcoco failed, and pycocotools evaluates in its place: {kind.__name__}: another version" in caplog.text
    with pytest.raises(kind):  # who asks for a program gets its error
        measure(truth, detections, LIMITS, "hotcoco")


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_who_stops_the_program_gets_no_other_evaluation(monkeypatch, kind):
    def stopped(*arguments):
        raise kind

    monkeypatch.setitem(EVALUATORS, chosen("auto"), stopped)
    with pytest.raises(kind):
        measure(*scene(0), LIMITS)
