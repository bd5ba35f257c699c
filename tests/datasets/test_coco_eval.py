"""Average precision: against pycocotools itself, and for what is special here: merging, unknown labels, no results."""
import contextlib
import copy
import io
import json
import shutil

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from datasets.benchmark_facts import HAS_VISIBLE
from datasets.coco import read_annotations
from datasets.coco_eval import (
    CLASS_STATS,
    STATS,
    Rules,
    coco_results,
    limit_note,
    log_entries,
    log_summary,
    result_rows,
    save_results,
    summarize,
)
from datasets.evaluation.evaluators import EVALUATORS
from util.options import EvaluationOptions

IMAGES = list(range(1, 9))
EMPTY, CROWD = 4, 8  # ids of the image without objects, and of the one with a crowd


@pytest.fixture
def coco(coco_root):
    return read_annotations(coco_root, "val")


def result(rows):
    """A post-processor's result from (score, label, xywh px)."""
    boxes = torch.tensor([box for *_, box in rows], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return {"scores": torch.tensor([score for score, *_ in rows]), "labels": torch.tensor(
        [label for _, label, _ in rows], dtype=torch.int64), "boxes": boxes}


def perfect(coco, image_id):
    return result([(0.9, a["category_id"], a["bbox"]) for a in coco.imgToAnns[image_id] if not a["iscrowd"]])


def shaken(coco, image_id, seed=0):
    """The objects moved at random, some with another label, and some boxes out of nothing."""
    rng = np.random.default_rng([seed, image_id])
    rows = [(rng.random(), a["category_id"] if rng.random() < 0.8 else int(rng.integers(1, 7)),
             (np.array(a["bbox"]) + rng.normal(0, 2, 4)).clip(1).tolist())
            for a in coco.imgToAnns[image_id] for _ in range(2)]
    rows += [(rng.random() / 2, int(rng.integers(1, 7)), rng.uniform(1, 40, 4).tolist()) for _ in range(5)]
    return result(rows)


def evaluated(coco, results):
    """Summary of results by image id, and its twelve numbers."""
    summary = summarize(coco, coco_results(list(results), list(results.values()), coco.cats))
    return summary, summary.stats


def official(path, rows, images=None):
    """pycocotools' own twelve numbers and printed table."""
    text = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(path)
        evaluation = COCOeval(truth, truth.loadRes(rows), "bbox")
        if images is not None:
            evaluation.params.imgIds = images
        evaluation.evaluate()
        evaluation.accumulate()
    with contextlib.redirect_stdout(text):
        evaluation.summarize()
    return evaluation.stats.tolist(), text.getvalue()


def annotation_file(root):
    return root / "annotations" / "instances_val2017.json"


def test_perfect_detections_have_ap_1(coco):
    _, stats = evaluated(coco, {i: perfect(coco, i) for i in IMAGES})
    numbers = dict(zip(STATS, stats, strict=True))
    assert numbers["AP"] == numbers["AP50"] == numbers["AP75"] == numbers["AR100"] == pytest.approx(1)


def test_an_annotation_with_the_id_0_can_be_found(coco_root, tmp_path):
    """pycocotools takes a match with the id 0 for no match."""
    root = shutil.copytree(coco_root, tmp_path / "set")
    content = json.loads(annotation_file(root).read_text())
    for number, annotation in enumerate(content["annotations"]):
        annotation["id"] = number
    annotation_file(root).write_text(json.dumps(content))
    coco = read_annotations(root, "val")
    assert evaluated(coco, {i: perfect(coco, i) for i in IMAGES})[1][0] == pytest.approx(1)


def test_no_detections_have_ap_0(coco):
    summary, stats = evaluated(coco, {i: result([]) for i in IMAGES})
    assert dict(zip(STATS, stats, strict=True))["AP"] == 0 and set(stats) <= {0, -1}
    assert "0.0" in summary.class_table and result_rows(summary.detections) == []


def test_nothing_seen_is_no_crash(coco):
    summary, stats = evaluated(coco, {})
    assert stats == (-1,) * 12
    assert len(summary.class_table.splitlines()) == 7


@pytest.mark.parametrize("images", [IMAGES, [1, 2, EMPTY], [EMPTY]])
def test_the_numbers_are_those_of_pycocotools(coco, coco_root, images):
    summary, stats = evaluated(coco, {i: shaken(coco, i) for i in images})
    wanted, table = official(annotation_file(coco_root), result_rows(summary.detections), images)
    assert len(stats) == 12 and all(type(x) is float for x in stats)
    assert stats == pytest.approx(tuple(wanted), abs=1e-12)
    assert summary.table == table
    if images == IMAGES:
        assert 0.05 < stats[0] < 0.9  # neither trivial


def test_summarize_twice_gives_the_same(coco):
    summary, stats = evaluated(coco, {i: shaken(coco, i) for i in IMAGES})
    again = summarize(coco, summary.detections)
    assert again.stats == stats and again.classes == summary.classes


def test_only_images_that_were_seen_count(coco):
    assert evaluated(coco, {i: perfect(coco, i) for i in (1, 2)})[1][0] == pytest.approx(1)
    _, stats = evaluated(coco, {1: perfect(coco, 1), 2: result([])})
    assert 0 < stats[0] < 1


def test_detections_within_a_crowd_do_not_count(coco):
    (crowd,) = [a for a in coco.imgToAnns[CROWD] if a["iscrowd"]]
    x, y, width, height = crowd["bbox"]
    inside = [(0.99, crowd["category_id"], [x + k, y + k, width / 2, height / 2]) for k in range(4)]
    plain = perfect(coco, CROWD)
    more = {name: torch.cat([value, plain[name]]) for name, value in result(inside).items()}
    assert evaluated(coco, {CROWD: more})[1][0] == pytest.approx(1)
    # The same boxes with another class are false positives, where that class is measured.
    wrong = [(0.99, int(plain["labels"][0]), box) for *_, box in inside]
    assert wrong[0][1] != crowd["category_id"]
    more = {name: torch.cat([value, plain[name]]) for name, value in result(wrong).items()}
    assert evaluated(coco, {CROWD: more})[1][0] < 0.95


def test_labels_without_a_category_are_left_out(coco, coco_root):
    found = {i: perfect(coco, i) for i in IMAGES}
    for image_id in IMAGES:
        extra = result([(1.0, 0, [1, 1, 50, 50]), (1.0, 7, [1, 1, 50, 50]), (1.0, 90, [5, 5, 9, 9])])
        found[image_id] = {name: torch.cat([value, found[image_id][name]]) for name, value in extra.items()}
    summary, stats = evaluated(coco, found)
    assert stats[0] == pytest.approx(1)
    assert {row["category_id"] for row in result_rows(summary.detections)} <= set(range(1, 7))


def test_the_table_has_a_line_for_every_class(coco):
    wrong = 5
    found = {i: perfect(coco, i) for i in IMAGES}
    for one in found.values():
        one["boxes"][one["labels"] == wrong] = torch.tensor([0.0, 0, 1, 1])
    header, *lines = evaluated(coco, found)[0].class_table.splitlines()
    assert header.split() == ["class", "AP", "AP50", "AP75", "APs", "APm", "APl", "boxes"]
    assert [line.split()[0] for line in lines] == ["disc", "ring", "square", "triangle", "star", "cross"]
    for label, line in enumerate(lines, 1):
        boxes = sum(a["category_id"] == label and not a["iscrowd"] for a in coco.anns.values())
        ap = "-" if boxes == 0 else "0.0" if label == wrong else "100.0"
        *measured, count = line.split()[1:]
        assert measured[:3] == [ap] * 3 and set(measured[3:]) <= {ap, "-"} and count == str(boxes)
        assert ap in measured[3:]


def test_the_numbers_of_the_classes_have_those_of_all_as_their_mean(coco):
    summary, stats = evaluated(coco, {i: shaken(coco, i) for i in IMAGES})
    for name, wanted in zip(CLASS_STATS, stats):
        measured = [score.stats[name] for score in summary.classes.values() if score.stats[name] is not None]
        assert wanted == -1 and not measured or np.mean(measured) == pytest.approx(wanted)
    assert list(summary.precision) == [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]
    assert summary.precision[0.75].shape == (101, 6)
    assert summary.precision[0.75].mean() == pytest.approx(stats[2])


def test_classes_that_no_image_shows_have_no_number(coco):
    lines = evaluated(coco, {EMPTY: result([(0.5, 1, [1, 1, 9, 9])])})[0].class_table.splitlines()[1:]
    assert all(line.split()[1:] == ["-"] * 6 + ["0"] for line in lines)


def test_saved_results_are_a_file_for_pycocotools(coco, coco_root, tmp_path):
    summary, stats = evaluated(coco, {i: shaken(coco, i) for i in IMAGES})
    path = tmp_path / "new" / "results.json"
    count = save_results(path, summary.detections)
    rows = json.loads(path.read_text())
    assert rows == result_rows(summary.detections) and len(rows) == count
    assert rows[0].keys() == {"image_id", "category_id", "bbox", "score"}
    assert official(annotation_file(coco_root), str(path))[0] == pytest.approx(list(stats), abs=1e-12)


def test_the_tables_are_logged(coco, caplog):
    with caplog.at_level("INFO"):
        log_summary(evaluated(coco, {1: perfect(coco, 1)})[0])
    assert "COCO evaluation of 1 images" in caplog.text and "by class" not in caplog.text
    with caplog.at_level("INFO"):
        log_summary(evaluated(coco, {EMPTY: result([])})[0], per_class=True)
    assert "no ground-truth boxes" in caplog.text and "by class" in caplog.text


def test_what_the_limit_of_100_detections_hides_is_said(coco, caplog):
    assert limit_note([(image, label) for image in "ab" for label in (1, 2)] * 100) is None
    note = limit_note([("a", 1)] * 150 + [("b", 1)] * 101 + [("b", 2)] * 102 + [("c", 3)] * 100)
    assert note.startswith("53 of the objects, in 2 of the images, are beyond the 100 detections per class and image")
    crowded = copy.deepcopy(coco)
    box = crowded.imgToAnns[1][0] | {"iscrowd": 0}
    crowded.imgToAnns[1] = [box | {"bbox": [k % 20 * 4, k // 20 * 4, 3, 3], "area": 9} for k in range(150)]
    summary = summarize(crowded, {1: []})
    with caplog.at_level("WARNING"):
        log_summary(summary)
    assert "50 of the objects, in 1 of the images, are beyond the 100 detections" in caplog.text
    assert summarize(coco, {1: []}).limit_note is None
    assert summarize(crowded, {2: []}).limit_note is None  # an image that was not evaluated


@pytest.fixture
def crowded(coco):
    """150 small boxes of one class in image 1."""
    crowded = copy.deepcopy(coco)
    box = crowded.imgToAnns[1][0] | {"iscrowd": 0}
    crowded.imgToAnns[1] = [box | {"bbox": [k % 20 * 4, k // 20 * 4, 3, 3], "area": 9} for k in range(150)]
    return crowded


def test_more_detections_can_count(crowded):
    found = {1: result([(0.9, a["category_id"], a["bbox"]) for a in crowded.imgToAnns[1]])}
    detections = coco_results([1], [found[1]], crowded.cats)
    assert summarize(crowded, detections).stats[0] == pytest.approx(0.67, abs=0.01)
    summary = summarize(crowded, detections, EvaluationOptions(max_dets=300))
    assert summary.stats[0] == pytest.approx(1) and summary.limit_note is None
    assert summary.stat_names[6:9] == ("AR1", "AR10", "AR300") and summary.stats[8] == pytest.approx(1)
    assert "maxDets=300 ] = 1.000" in summary.table and "maxDets=100" not in summary.table
    assert "10 of the objects" in summarize(crowded, detections, EvaluationOptions(max_dets=140)).limit_note


@pytest.mark.parametrize("name", EVALUATORS)
def test_every_evaluator_gives_the_same_summary(coco, name):
    detections = coco_results(IMAGES, [shaken(coco, i) for i in IMAGES], coco.cats)
    wanted = summarize(coco, detections, EvaluationOptions("pycocotools"))
    summary = summarize(coco, detections, EvaluationOptions(name))
    assert summary.evaluator == name and summary.stats == pytest.approx(wanted.stats, abs=1e-12)
    assert summary.table == wanted.table and summary.class_table == wanted.class_table
    for iou, precision in wanted.precision.items():
        assert np.abs(summary.precision[iou] - precision).max() < 1e-12


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_detections_that_are_no_numbers_do_not_count(coco, caplog, number):
    rows = [{"image_id": 1, "category_id": 1, "score": number, "bbox": [1.0, 1.0, 5.0, 5.0]},
            {"image_id": 1, "category_id": 1, "score": 0.99, "bbox": [1.0, 1.0, number, 5.0]}]
    detections = coco_results(IMAGES, [perfect(coco, i) for i in IMAGES], coco.cats)
    detections[1] = rows + detections[1]
    with caplog.at_level("WARNING"):
        assert summarize(coco, detections).stats[0] == pytest.approx(1)
    assert "2 detections have a score or box that is no finite number" in caplog.text


def as_lvis(coco):
    """Image 1 says nothing of other classes than its own; the others are exhaustive, and nothing else is in them."""
    for image_id, image in coco.imgs.items():
        present = {a["category_id"] for a in coco.imgToAnns[image_id]}
        image |= {"neg_category_ids": [] if image_id == 1 else sorted(coco.cats.keys() - present),
                  "not_exhaustive_category_ids": []}
    for category in coco.cats.values():
        category["frequency"] = "rcf"[category["id"] % 3]
    return coco


def test_a_file_of_lvis_is_evaluated_by_its_rules(coco, caplog):
    absent = next(iter(coco.cats.keys() - {a["category_id"] for a in coco.imgToAnns[1]}))
    detections = coco_results(IMAGES, [perfect(coco, i) for i in IMAGES], coco.cats)
    detections[1].append({"image_id": 1, "category_id": absent, "score": 0.99, "bbox": [1.0, 1.0, 5.0, 5.0]})
    assert summarize(coco, detections).stats[0] < 0.99
    lvis = as_lvis(coco)
    summary = summarize(lvis, detections)
    assert summary.stats[0] == pytest.approx(1) and summary.stat_names[8] == "AR300"
    assert summary.more == pytest.approx({"APr": 1, "APc": 1, "APf": 1})
    assert summary.table.splitlines()[-3].split() == ["APr", "=", "1.000"]
    assert log_entries(summary) == {"test_coco_eval_bbox": summary.stats} | {
        f"test_{name}": value for name, value in summary.more.items()}
    with caplog.at_level("INFO"):
        log_summary(summary)
    assert f"LVIS evaluation of 8 images, by {summary.evaluator}" in caplog.text
    assert summarize(lvis, detections, EvaluationOptions(metrics="coco")).stats[0] < 0.99


def test_the_limit_of_lvis_is_of_an_image(crowded):
    lvis = as_lvis(crowded)
    assert summarize(lvis, {1: []}).limit_note is None
    lvis.imgToAnns[1] += [a | {"category_id": 6 - a["category_id"]} for a in lvis.imgToAnns[1]] * 2
    assert summarize(lvis, {1: []}).limit_note.startswith(
        "150 of the objects, in 1 of the images, are beyond the 300 detections per image that count")


def test_a_file_of_crowdhuman_has_a_miss_rate(coco, caplog):
    coco.dataset["info"][HAS_VISIBLE] = True
    summary = summarize(coco, coco_results(IMAGES, [perfect(coco, i) for i in IMAGES], coco.cats))
    assert summary.stats[0] == pytest.approx(1) and summary.more["MR-2"] == 0
    assert summary.table.splitlines()[-2].split() == ["MR-2", "=", "0.000"]
    with caplog.at_level("INFO"):
        log_summary(summary)
    assert "COCO and CrowdHuman evaluation of 8 images" in caplog.text
    nothing = summarize(coco, {EMPTY: []})
    assert nothing.more == {"MR-2": None, "AP50-CrowdHuman": None} and log_entries(nothing).keys() == {
        "test_coco_eval_bbox"}


def test_the_rules_can_be_chosen(coco):
    assert Rules.of(coco, EvaluationOptions()) == Rules("coco", 100)
    assert Rules.of(coco, EvaluationOptions(metrics="lvis")) == Rules("lvis", 300)
    assert Rules.of(coco, EvaluationOptions(metrics="crowdhuman", max_dets=500)) == Rules("crowdhuman", 500)
    assert Rules.of(as_lvis(coco), EvaluationOptions(max_dets=400)) == Rules("lvis", 400)


def test_results_are_left_as_they_are(coco):
    found = perfect(coco, 1)
    before = found["boxes"].clone()
    evaluated(coco, {1: found})
    assert torch.equal(found["boxes"], before)


def test_half_precision_results_are_taken(coco):
    found = {name: value.half() if value.is_floating_point() else value for name, value in perfect(coco, 1).items()}
    assert evaluated(coco, {1: found})[1][0] == pytest.approx(1)
