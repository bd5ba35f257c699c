"""The kinds of errors: each injected alone into perfect detections, with gains worked out by hand."""
import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO

from datasets.coco_eval import Rules, summarize
from reports.error_analysis import (
    BEYOND_LIMIT,
    KINDS,
    confusion_matrix,
    match_detections,
    operating_points,
    tide_errors,
)
from util.errors import UserError

HALF = 51 / 101  # AP of a class of which one in two boxes is found: the recalls 0, 0.01 .. 0.5 of 101
SIDE, GAP = 100, 400  # px of the boxes, and between the corners of two


def coco_of(boxes, classes=2, images=3):
    """A ground truth of (image, class, xywh), with a fourth entry for a crowd; ids from 1."""
    annotations = [{"id": i, "image_id": image, "category_id": label, "bbox": list(box), "area": box[2] * box[3],
                    "iscrowd": int(any(crowd))} for i, (image, label, box, *crowd) in enumerate(boxes, 1)]
    coco = COCO()
    coco.dataset = {"info": {}, "annotations": annotations, "images": [{"id": i + 1} for i in range(images)],
                    "categories": [{"id": i + 1, "name": f"class {i + 1}"} for i in range(classes)]}
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def rows_of(coco, rows):
    """Detections by image from (image, class, xywh, score)."""
    found = {image: [] for image in coco.imgs}
    for image, label, box, score in rows:
        found[image].append({"image_id": image, "category_id": label, "bbox": list(box), "score": score})
    return found


def matched(coco, rows):
    return match_detections(coco, rows_of(coco, rows))


def place(column, row=0, shift=0):
    """A box, moved to the right: by 54 px, its IoU with the unmoved one is 0.30."""
    return (GAP * column + shift, GAP * row, SIDE, SIDE)


TRUTH = [(1, 1, place(0)), (1, 1, place(1)), (2, 2, place(0)), (2, 2, place(1))]
PERFECT = [(*TRUTH[0], 0.9), (*TRUTH[1], 0.8), (*TRUTH[2], 0.9), (*TRUTH[3], 0.8)]
EMPTY_PLACE = place(5)


# The second box of class 1 with another class or place, or one more detection; precision of the other one below.
CASES = {
    "classification": ([*PERFECT[:1], (1, 2, place(1), 0.99), *PERFECT[2:]], 1 - (HALF + 2 / 3) / 2),
    "localization": ([*PERFECT[:1], (1, 1, place(1, shift=54), 0.99), *PERFECT[2:]], (1 - HALF / 2) / 2),
    "both": ([*PERFECT, (1, 2, place(1, shift=54), 0.99)], 1 / 6),
    "duplicate": ([*PERFECT, (1, 1, place(0, shift=5), 0.85)], (1 - (51 + 50 * 2 / 3) / 101) / 2),
    "background": ([*PERFECT, (1, 1, EMPTY_PLACE, 0.99)], 1 / 6),
    "missed": ([*PERFECT[:1], *PERFECT[2:]], (1 - HALF) / 2),
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_alone_is_the_only_kind_and_costs_what_it_should(kind):
    rows, gain = CASES[kind]
    errors = tide_errors(matched(coco_of(TRUTH), rows))
    assert errors.ap50 == pytest.approx(1 - gain)
    assert {k: errors.gains[k] for k in KINDS} == pytest.approx({k: gain if k == kind else 0 for k in KINDS})
    assert {k: errors.counts[k] for k in KINDS} == {k: int(k == kind) for k in KINDS}


def test_false_positives_and_false_negatives():
    (rows, both), (_, missing) = CASES["both"], CASES["missed"]
    errors = tide_errors(matched(coco_of(TRUTH), rows))
    assert errors.gains["false positives"] == pytest.approx(both) and errors.gains["false negatives"] == 0
    assert (errors.counts["false positives"], errors.counts["false negatives"]) == (1, 0)
    errors = tide_errors(matched(coco_of(TRUTH), CASES["missed"][0]))
    assert errors.gains["false negatives"] == pytest.approx(missing) and errors.gains["false positives"] == 0
    errors = tide_errors(matched(coco_of(TRUTH), CASES["localization"][0]))
    # Without the false positive half is found with precision 1; without the lost box precision is 1/2 to the end.
    assert errors.gains["false positives"] == pytest.approx((HALF - HALF / 2) / 2)
    assert errors.gains["false negatives"] == pytest.approx((1 / 2 - HALF / 2) / 2)


@pytest.mark.parametrize("kind", [None, *KINDS])
def test_one_kind_among_many_boxes(kind):
    """Seeded noise: jitter that stays a find, and a third of the boxes with one kind of error."""
    rng = np.random.default_rng(0)
    truth = [(image, int(rng.integers(1, 4)), place(column, row))
             for image in range(1, 11) for column in range(4) for row in range(3)]
    rows = []
    for image, label, box in truth:
        wrong = label % 3 + 1
        column, row = box[0] // GAP, box[1] // GAP
        find = (image, label, place(column, row, shift=int(rng.integers(-30, 30))), rng.random())
        above = min(1, find[3] + 0.2)
        injected = {
            "classification": [(image, wrong, place(column, row), above)],
            "localization": [(image, label, place(column, row, shift=54), above)],
            "both": [find, (image, wrong, place(column, row, shift=54), above)],
            "duplicate": [find, (image, label, find[2], find[3] * 0.99)],
            "background": [find, (image, label, place(column, row + 10), above)],
            "missed": [],
        }
        rows += injected[kind] if kind and rng.random() < 1 / 3 else [find]
    errors = tide_errors(matched(coco_of(truth, classes=3, images=10), rows))
    assert {k for k in KINDS if errors.gains[k] > 1e-9} == ({kind} if kind else set())
    assert {k for k in KINDS if errors.counts[k]} == ({kind} if kind else set())
    if kind:  # nothing else is wrong
        assert errors.ap50 + errors.gains[kind] == pytest.approx(1)


def test_of_a_fixed_and_a_correct_detection_the_higher_score_stays():
    truth = [(1, 1, place(0)), (1, 1, place(1))]
    rows = [(1, 1, place(0), 0.3), (1, 1, place(1), 0.6), (1, 1, EMPTY_PLACE, 0.5), (1, 2, place(0), 0.9)]
    errors = tide_errors(matched(coco_of(truth), rows))
    assert errors.counts["classification"] == 1
    assert errors.ap50 == pytest.approx((51 + 50 * 2 / 3) / 101)  # find, background, find
    assert errors.gains["classification"] == pytest.approx(1 - errors.ap50)  # find 0.9, find 0.6; 0.3 is removed
    rows[-1] = (1, 2, place(0), 0.2)
    assert tide_errors(matched(coco_of(truth), rows)).gains["classification"] == 0


def test_only_the_best_of_several_that_could_find_a_box_is_fixed():
    rows = [*CASES["localization"][0], (1, 1, place(1, shift=-54), 0.95)]
    errors = tide_errors(matched(coco_of(TRUTH), rows))
    assert errors.counts["localization"] == 2 and errors.counts["missed"] == 0
    assert errors.ap50 + errors.gains["localization"] == pytest.approx(1)


def test_a_detection_that_fits_two_kinds_is_the_first():
    truth = [(1, 1, place(0)), (1, 2, place(0, shift=54))]
    rows = [(1, 1, place(0, shift=54), 0.9)]  # IoU 0.3 with its own class, 1 with the other
    counts = tide_errors(matched(coco_of(truth), rows)).counts
    assert counts["localization"] == 1 and counts["classification"] == 0
    assert counts["missed"] == 1  # the other box, which nothing could find any more


def test_where_everything_is_missed_that_is_all_it_costs():
    errors = tide_errors(matched(coco_of(TRUTH), []))
    assert errors.ap50 == 0 and errors.gains["missed"] == 1
    assert sum(errors.gains[kind] for kind in KINDS) == 1


def noisy(rng, truth, classes):
    rows = []
    for image, label, box, *_ in truth:
        for _ in range(int(rng.integers(0, 4))):
            jitter = rng.normal(0, 0.2, 4) * SIDE
            rows.append((image, label if rng.random() < 0.7 else int(rng.integers(1, classes + 1)),
                         (np.array(box) + jitter).clip(1).tolist(), round(rng.random(), 1)))  # with equal scores
    return rows


def test_where_recall_ends_just_below_a_sample_ap_is_still_that_of_pycocotools():
    """57 of 100 found: 0.57 is below COCO's floating-point 57th sample, which therefore counts as not reached."""
    truth = [(1, 1, place(i % 10, i // 10)) for i in range(100)]
    coco = coco_of(truth, classes=1, images=1)
    detections = rows_of(coco, [(*box, 1 - i / 1000) for i, box in enumerate(truth[:57])])
    errors = tide_errors(match_detections(coco, detections))
    assert errors.ap50 == pytest.approx(57 / 101) == pytest.approx(summarize(coco, detections).stats[1])
    assert errors.gains["missed"] == errors.gains["false negatives"] == pytest.approx(44 / 101)


def test_a_fixed_detection_stays_where_it_scores_higher_than_the_find():
    """Localization 0.9, background 0.6, find 0.5: AP 1/3; with the first as the find and the last removed 1."""
    rows = [(1, 1, place(0, shift=54), 0.9), (1, 1, EMPTY_PLACE, 0.6), (1, 1, place(0), 0.5)]
    errors = tide_errors(matched(coco_of([(1, 1, place(0))]), rows))
    assert errors.ap50 == pytest.approx(1 / 3) and errors.gains["localization"] == pytest.approx(2 / 3)


def test_two_kinds_may_fix_the_same_box():
    """Each kind on its own: without the localization error class 1 has AP 1, and so it has without the other, of 0.5,
    whose way to the box of class 1 leaves the localization error above it: precision 1/2."""
    rows = [(1, 1, place(0, shift=54), 0.9), (1, 2, place(0), 0.5), (1, 2, place(1), 0.8)]
    errors = tide_errors(matched(coco_of([(1, 1, place(0)), (1, 2, place(1))]), rows))
    assert errors.ap50 == pytest.approx(1 / 2)
    assert errors.gains["localization"] == pytest.approx(1 / 2)
    assert errors.gains["classification"] == pytest.approx(1 / 4)


def test_a_class_that_is_never_detected_costs_its_share():
    """A background error and two finds (AP 2/3), and a class without a detection (AP 0)."""
    truth = [(1, 1, place(0)), (1, 1, place(1)), (2, 2, place(0))]
    rows = [(1, 1, EMPTY_PLACE, 0.9), (1, 1, place(0), 0.8), (1, 1, place(1), 0.7)]
    errors = tide_errors(matched(coco_of(truth), rows))
    assert errors.ap50 == pytest.approx(1 / 3) and errors.gains["missed"] == pytest.approx(1 / 2)


def test_a_class_without_boxes_does_not_count():
    errors = tide_errors(matched(coco_of([(1, 1, place(0))]), [(1, 1, place(0), 0.8), (2, 2, place(0), 0.9)]))
    assert errors.ap50 == 1 and errors.gains["background"] == 0 and errors.counts["background"] == 1


def crowd(count, found, shift=0):
    """A truth of `count` boxes of class 1 in image 1, and detections of the first `found` of them."""
    truth = [(1, 1, place(i % 20, i // 20)) for i in range(count)]
    return coco_of(truth, classes=1, images=1), [(1, 1, place(i % 20, i // 20, shift), 1 - i / 1000)
                                                 for i in range(found)]


def test_what_cocos_limit_hides_is_not_missed():
    """150 boxes, all found: AP looks at 100 detections, and reaches the recalls 0, 0.01 .. 0.66."""
    coco, rows = crowd(150, 150)
    matches = matched(coco, rows)
    errors = tide_errors(matches)
    assert errors.ap50 == pytest.approx(67 / 101) == pytest.approx(summarize(coco, rows_of(coco, rows)).stats[1])
    assert errors.gains.pop(BEYOND_LIMIT) == pytest.approx(34 / 101) and errors.counts.pop(BEYOND_LIMIT) == 50
    assert not any(errors.gains.values()) and not any(errors.counts.values())
    assert confusion_matrix(matches).tolist() == [[150, 0], [0, 0]]
    (point,) = operating_points(matches)
    assert (point.score, point.precision, point.recall) == (pytest.approx(1 - 149 / 1000), 1, 1)


def test_what_nobody_finds_is_missed_with_a_limit_too():
    coco, rows = crowd(150, 120)
    errors = tide_errors(matched(coco, rows))
    assert (errors.counts["missed"], errors.counts["false negatives"], errors.counts[BEYOND_LIMIT]) == (30, 30, 20)
    coco, rows = crowd(150, 90)
    errors = tide_errors(matched(coco, rows))
    assert errors.counts["missed"] == 60 and BEYOND_LIMIT not in errors.counts


def test_more_detections_can_count():
    coco, rows = crowd(150, 150)
    errors = tide_errors(match_detections(coco, rows_of(coco, rows), Rules("coco", 150)))
    assert errors.ap50 == pytest.approx(1) and BEYOND_LIMIT not in errors.counts


@pytest.mark.parametrize("seed", range(3))
def test_by_lvis_rules_ap50_is_that_of_lvis(seed):
    rng = np.random.default_rng(seed)
    truth = [(int(rng.integers(1, 7)), int(rng.integers(1, 4)), rng.uniform(20, 150, 4).tolist()) for _ in range(80)]
    coco = coco_of(truth, classes=4, images=7)
    for image_id, image in coco.imgs.items():
        present = sorted({a["category_id"] for a in coco.imgToAnns[image_id]})
        image |= {"neg_category_ids": [4] * (image_id % 2), "not_exhaustive_category_ids": present[:1]}
    for category in coco.cats.values():
        category["frequency"] = "c"
    detections = rows_of(coco, noisy(rng, truth, 4))
    summary = summarize(coco, detections)
    matches = match_detections(coco, detections, summary.rules)
    errors = tide_errors(matches)
    assert summary.rules.metrics == "lvis" and errors.ap50 == pytest.approx(summary.stats[1], abs=1e-12)
    assert abs(errors.ap50 - tide_errors(match_detections(coco, detections)).ap50) > 0.01
    assert len(matches.scores) < sum(map(len, detections.values())) and matches.counted.all()
    not_exhaustive = [matches.categories[label] in coco.imgs[image]["not_exhaustive_category_ids"]
                      for image, label in zip(matches.images, matches.labels)]
    assert (matches.ignored == ((matches.found < 0) & not_exhaustive)).all() and matches.ignored.any()


def test_loose_boxes_beyond_the_limit_are_not_missed():
    counts = tide_errors(matched(*crowd(150, 150, shift=54))).counts
    assert (counts["localization"], counts["missed"], counts[BEYOND_LIMIT]) == (100, 0, 50)


def test_without_that_many_boxes_a_late_find_is_a_miss():
    """The 101st detection finds the box; COCO's AP does not look at it, and the detector is to blame."""
    coco = coco_of([(1, 1, place(0))], classes=1, images=1)
    rows = [*[(1, 1, place(i % 20, 3 + i // 20), 0.9) for i in range(100)], (1, 1, place(0), 0.1)]
    errors = tide_errors(matched(coco, rows))
    assert errors.counts["missed"] == 1 and BEYOND_LIMIT not in errors.counts and errors.ap50 == 0


def test_ap50_is_that_of_pycocotools():
    rng = np.random.default_rng(1)
    truth = [(int(rng.integers(1, 7)), int(rng.integers(1, 4)), rng.uniform(20, 150, 4).tolist(), rng.random() < 0.1)
             for _ in range(80)]
    coco = coco_of(truth, classes=4, images=7)  # one class and one image without boxes
    rows = noisy(rng, truth, 4)
    rows += [(1, 1, rng.uniform(20, 150, 4).tolist(), rng.random()) for _ in range(150)]  # more than COCO looks at
    detections = rows_of(coco, rows)
    matches = match_detections(coco, detections)
    errors = tide_errors(matches)
    assert errors.ap50 == pytest.approx(summarize(coco, detections).stats[1], abs=1e-12)
    assert matches.ignored.any() and not matches.counted.all()
    assert errors.counts["false positives"] == sum(errors.counts[k] for k in KINDS[:-1])
    assert errors.counts["false positives"] == (matches.counted & (matches.found < 0) & ~matches.ignored).sum()
    assert errors.counts["false negatives"] >= errors.counts["missed"]
    assert all(gain >= 0 for gain in errors.gains.values())


def test_detections_on_a_crowd_of_their_class_are_no_errors():
    coco = coco_of([*TRUTH, (3, 1, (0, 0, 300, 300), True)])
    inside = (50, 50, SIDE, SIDE)
    errors = tide_errors(matched(coco, [*PERFECT, (3, 1, inside, 0.99), (3, 1, inside, 0.98)]))
    assert errors.ap50 == 1 and not any(errors.counts.values())
    errors = tide_errors(matched(coco, [*PERFECT, (3, 2, inside, 0.99)]))  # of another class they are
    assert errors.counts["background"] == 1 and errors.gains["background"] == pytest.approx(1 / 6)


def test_confusion_matrix():
    rows = [*PERFECT[:1], (1, 2, place(1), 0.7), (2, 2, place(0), 0.9), (2, 1, place(0), 0.8), (3, 1, place(0), 0.4),
            (3, 2, place(0), 0.1)]
    matches = matched(coco_of(TRUTH), rows)
    # class 1: one found, one taken for 2; class 2: one found, one missed; a second on the found one; one in the empty
    assert confusion_matrix(matches).tolist() == [[1, 1, 0], [0, 1, 1], [2, 0, 0]]
    assert confusion_matrix(matches, score=0.1).tolist() == [[1, 1, 0], [0, 1, 1], [2, 1, 0]]
    assert confusion_matrix(matches, score=0.9).tolist() == [[1, 0, 1], [0, 1, 1], [0, 0, 0]]
    assert confusion_matrix(matches, score=0.99).tolist() == [[0, 0, 2], [0, 0, 2], [0, 0, 0]]


def test_a_confusion_matrix_goes_by_score_then_by_iou():
    truth = [(1, 1, place(0)), (1, 2, place(0, shift=20))]
    rows = [(1, 1, place(0, shift=20), 0.6), (1, 2, place(0, shift=4), 0.9)]
    # The better score takes the box of class 1, which it overlaps more; what is left for the other is that of class 2.
    assert confusion_matrix(matched(coco_of(truth), rows)).tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 0]]


def test_a_crowd_of_any_class_is_left_out_of_the_confusion_matrix():
    coco = coco_of([(1, 1, place(0)), (1, 1, (0, 0, 300, 300), True)])
    rows = [(1, 1, place(0), 0.9), (1, 2, (150, 150, SIDE, SIDE), 0.9), (1, 1, (150, 150, SIDE, SIDE), 0.9)]
    assert confusion_matrix(matched(coco, rows)).tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_the_operating_point_has_the_best_f1_of_all_thresholds():
    rng = np.random.default_rng(2)
    truth = [(1, 1, place(column, row)) for column in range(5) for row in range(8)]
    rows = [(image, label, box, min(1, score + 0.3)) for image, label, box, score in noisy(rng, truth, 1)]
    rows += [(1, 1, place(column, 9), round(rng.random(), 1)) for column in range(20)]
    matches = matched(coco_of(truth, classes=1), rows)
    (point,) = operating_points(matches)

    def at(threshold):
        kept = matches.scores >= threshold
        found = (matches.found[kept] >= 0).sum()
        return found / kept.sum(), found / len(truth), 2 * found / (kept.sum() + len(truth))

    assert (point.precision, point.recall, point.f1) == pytest.approx(at(point.score))
    assert point.f1 == pytest.approx(max(at(score)[2] for score in matches.scores))
    assert 0 < point.recall < 1 and 0 < point.precision < 1


def test_classes_without_a_find_have_no_operating_point():
    points = operating_points(matched(coco_of(TRUTH, classes=3), [*PERFECT[:2], (3, 2, place(0), 0.5)]))
    assert (points[0].score, points[0].f1) == (0.8, 1) and points[1:] == [None, None]


@pytest.mark.parametrize("rows", [[], [(1, 1, EMPTY_PLACE, 0.9)]])
def test_without_ground_truth_there_is_nothing_to_measure(rows):
    matches = matched(coco_of([]), rows)
    errors = tide_errors(matches)
    assert errors.ap50 is None and set(errors.gains.values()) == {None}
    assert errors.counts["background"] == len(rows)
    assert confusion_matrix(matches).tolist() == [[0, 0, 0], [0, 0, 0], [len(rows), 0, 0]]
    assert operating_points(matches) == [None, None]


def test_images_that_were_not_seen_do_not_count():
    coco = coco_of(TRUTH)
    assert confusion_matrix(match_detections(coco, {})).tolist() == [[0] * 3] * 3
    assert confusion_matrix(match_detections(coco, {1: []})).tolist() == [[0, 0, 2], [0, 0, 0], [0, 0, 0]]


def test_unknown_categories_are_refused():
    with pytest.raises(UserError, match="category_id 7"):
        matched(coco_of(TRUTH), [(1, 7, EMPTY_PLACE, 0.5)])
