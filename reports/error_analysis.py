"""What a detector gets wrong: confusion matrix, TIDE's error split, and the best score threshold for each class.

    matches = match_detections(coco, detections)   # once; the rest is fast
    confusion_matrix(matches), tide_errors(matches), operating_points(matches)

The error split is that of section 3 of TIDE: A General Toolbox for Identifying Object Detection Errors. D. Bolya,
S. Foley, J. Hays, J. Hoffman. ECCV 2020.

Shapes: D detections, G ground-truth boxes without the crowds, K classes.
"""
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from pycocotools import mask
from pycocotools.coco import COCO

from datasets.benchmark_facts import NOT_EXHAUSTIVE
from datasets.coco_eval import COCO_RULES, Rules
from datasets.evaluation.lvis import judged_rows
from util.errors import UserError

# TIDE's t_f and t_b: the IoU from which a detection finds a box, and below which it shows nothing.
FOREGROUND, BACKGROUND = 0.5, 0.1
CONFIDENT = 0.3  # minimum score of the detections in a confusion matrix
RECALLS = np.linspace(0, 1, 101)  # where COCO samples the precision
KINDS = ("classification", "localization", "both", "duplicate", "background", "missed")
BEYOND_LIMIT = "beyond the limit"  # the name of what COCO's limit hides
CLASSIFICATION, LOCALIZATION, BOTH, DUPLICATE, BACKGROUND_KIND, _ = range(len(KINDS))


@dataclass(frozen=True)
class Matches:
    """Detections in descending order of score, and how they relate to the ground truth.

    Classes are indices into `categories`, boxes are indices into `truth`; -1 stands for no box.
    """

    categories: list[int]  # [K] category ids, ascending
    truth: np.ndarray  # [G] class of each box
    crowded: np.ndarray  # [G] bool: one of more boxes of its class in its image than detections count
    scores: np.ndarray  # [D] in [0, 1], descending
    labels: np.ndarray  # [D] class
    counted: np.ndarray  # [D] bool: among the best of its class in its image, and so in AP
    images: np.ndarray  # [D] image id, a number or a text
    bboxes: np.ndarray  # [D, 4] xywh px
    found: np.ndarray  # [D] the box that it finds, by the rules of COCO's AP50
    ignored: np.ndarray  # [D] bool: finds nothing and lies on a crowd of its class, or may be right (LVIS)
    located: np.ndarray  # [D] the box that it finds by the same rules if classes do not matter
    on_crowd: np.ndarray  # [D] bool: locates nothing and lies on a crowd of any class, or may be right (LVIS)
    same: np.ndarray  # [D] the box of its class with which it overlaps most, found by others or not
    same_iou: np.ndarray  # [D] and the IoU with that, 0 without one
    other: np.ndarray  # [D], and
    other_iou: np.ndarray  # [D]: the same among the boxes of all other classes

    def only(self, chosen: np.ndarray) -> "Matches":
        """With some of the detections; chosen [D] bool."""
        of_detections = [field.name for field in fields(self) if field.name not in ("categories", "truth", "crowded")]
        return replace(self, **{name: getattr(self, name)[chosen] for name in of_detections})

    @property
    def boxes(self) -> np.ndarray:
        """Ground-truth boxes of every class, [K]."""
        return np.bincount(self.truth, minlength=len(self.categories))


@dataclass(frozen=True)
class ErrorSplit:
    """What each kind of error costs. AP50 and gains are in [0, 1], and None without a ground-truth box."""

    ap50: float | None
    # AP50 gained without them, by KINDS, "false positives", "false negatives", and BEYOND_LIMIT if there is such a box.
    gains: dict[str, float | None]
    counts: dict[str, int]  # the same keys: detections of every score, or boxes


@dataclass(frozen=True)
class OperatingPoint:
    """Precision, recall and their harmonic mean at IoU 0.5 if detections from `score` on count; all in [0, 1]."""

    score: float
    precision: float
    recall: float
    f1: float


def match_detections(coco: COCO, detections: dict[int, list[dict]], rules: Rules = COCO_RULES) -> Matches:
    """detections: rows of COCO's result format by image id, an empty list for an image without any. Other
    images do not count. Raises UserError for rows of categories that `coco` lacks.

    By LVIS's rules, detections that it does not judge are left out, and those that find nothing are ignored if their
    class is not exhaustively annotated in their image.
    """
    is_lvis = rules.metrics == "lvis"
    categories = np.array(sorted(coco.getCatIds()))
    truth, crowded, parts, boxes_before = [], [], [], 0
    for image_id in sorted(detections):
        annotations, rows, excused = coco.imgToAnns[image_id], detections[image_id], []
        if is_lvis:
            rows = judged_rows(coco, image_id, rows, rules.limit)
            excused = coco.imgs[image_id].get(NOT_EXHAUSTIVE, [])
        part_truth, part = _match_image(categories, annotations, rows, excused)
        part["counted"] = (_rank(part["labels"]) < rules.limit) | is_lvis
        part["images"] = np.array([image_id] * len(part["scores"]), object)
        for name in ("found", "located", "same", "other"):
            part[name] = np.where(part[name] >= 0, part[name] + boxes_before, -1)
        boxes_before += len(part_truth)
        truth.append(part_truth)
        crowded.append((np.bincount(part_truth, minlength=1)[part_truth] > rules.limit) & (not is_lvis))
        parts.append(part)
    # Gives each array its type even if there is no image.
    parts.append(_match_image(categories, [], [])[1] | {"images": np.zeros(0, object), "counted": np.zeros(0, bool)})
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[-1]}
    order = np.argsort(-joined["scores"], kind="stable")
    return Matches(categories.tolist(), np.concatenate([*truth, np.zeros(0, int)]),
                   np.concatenate([*crowded, np.zeros(0, bool)]),
                   **{name: values[order] for name, values in joined.items()})


def annotations_of(coco: COCO, images: Iterable[int | str], crowds: bool = False) -> list[list[dict]]:
    """By image, in rising order, the annotations that are no crowds, or those that are. Of the images that
    match_detections has been given, those without crowds are in the order of Matches.truth."""
    return [[a for a in coco.imgToAnns[image] if bool(a["iscrowd"]) == crowds] for image in sorted(images)]


def confusion_matrix(matches: Matches, score: float = CONFIDENT) -> np.ndarray:
    """How often boxes of each class are detected as each class: integers [K + 1, K + 1], rows truth, columns found.

    Detections from `score` on take, best first, the free box with which they overlap most, whatever its class, at an
    IoU of at least 0.5. Those that find none are in the last row, boxes that none of them takes in the last column.
    Detections on a crowd count nowhere.
    """
    classes = len(matches.categories)
    matrix = np.zeros((classes + 1, classes + 1), int)
    shown = matches.scores >= score
    hit = shown & (matches.located >= 0)
    np.add.at(matrix, (matches.truth[matches.located[hit]], matches.labels[hit]), 1)
    nothing = shown & (matches.located < 0) & ~matches.on_crowd
    matrix[-1, :-1] = np.bincount(matches.labels[nothing], minlength=classes)
    matrix[:-1, -1] = matches.boxes - matrix[:-1].sum(1)
    return matrix


def tide_errors(matches: Matches) -> ErrorSplit:
    """The AP50 gained by fixing only one kind of error (TIDE's main errors), and by the two special ones.

    A detection that finds no box of its class is the first of these that applies; IoU is the largest with any box:
        localization    IoU in [0.1, 0.5) with its own class. Fixed: it finds that box
        classification  IoU >= 0.5 with another class. Fixed: it gets that class and finds that box
        duplicate       IoU >= 0.5 with its own class, whose box has been found. Fixed: removed
        both            IoU in [0.1, 0.5) with another class. Fixed: removed
        background      IoU < 0.1 with everything. Fixed: removed
    Where a fixed detection and others find the same box, only the one with the highest score is kept, and each kind is
    fixed as if it were the only one, both as the paper says. docs/finetuning.md compares with other programs.
        missed          a box that no detection finds, and that no localization or classification error could find.
                        Fixed: it is no longer among those to be found
    False positives are all of these detections, removed; false negatives are all boxes that no detection finds, no
    longer to be found. The definitions overlap; the order is that of the authors' program, which the paper leaves open.

    All this is about the detections that count in AP. A box that only another one finds or is near to, in an image with
    more boxes of its class than AP has detections, is no error of the detector: it is BEYOND_LIMIT, and not missed.
    """
    m = matches.only(matches.counted)
    kinds = error_kinds(m)
    unfound = np.ones(len(m.truth), bool)
    unfound[m.found[m.found >= 0]] = False
    hidden = unfound & matches.crowded & _reached(matches.only(~matches.counted))
    unfound &= ~hidden
    missed = missed_boxes(m) & ~hidden

    fixed = {KINDS[kind]: _ap50(m, keep=kinds != kind) for kind in (BOTH, DUPLICATE, BACKGROUND_KIND)}
    fixed["localization"] = _ap50(m, **_fix(m, np.where(kinds == LOCALIZATION, m.same, m.found)))
    fixed["classification"] = _ap50(m, **_fix(m, np.where(kinds == CLASSIFICATION, m.other, m.found)))
    fixed["missed"] = _ap50(m, without=missed)
    fixed["false positives"] = _ap50(m, keep=m.found >= 0)
    fixed["false negatives"] = _ap50(m, without=unfound)
    special = {"missed": missed, "false negatives": unfound}
    if hidden.any():
        fixed[BEYOND_LIMIT], special[BEYOND_LIMIT] = _ap50(m, without=hidden), hidden

    ap50 = _ap50(m)
    counts = {name: int((kinds == kind).sum()) for kind, name in enumerate(KINDS)} | {
        "false positives": int((kinds >= 0).sum())} | {name: int(boxes.sum()) for name, boxes in special.items()}
    # Fixing never lowers AP; a recall that is rounded to the other side of a sample can make it seem so.
    gains = {name: None if ap50 is None or (ap := fixed[name]) is None else max(0.0, ap - ap50) for name in counts}
    return ErrorSplit(ap50, gains, counts)


def missed_boxes(matches: Matches) -> np.ndarray:
    """The boxes that no detection finds, and that no localization or classification error could find. [G] bool"""
    reached = _reached(matches)
    reached[matches.other[error_kinds(matches) == CLASSIFICATION]] = True
    return ~reached


def _reached(matches: Matches) -> np.ndarray:
    """The boxes that a detection finds, or is nearest to as a localization error. [G] bool"""
    reached = np.zeros(len(matches.truth), bool)
    reached[matches.found[matches.found >= 0]] = True
    reached[matches.same[error_kinds(matches) == LOCALIZATION]] = True
    return reached


def error_kinds(matches: Matches) -> np.ndarray:
    """Index into KINDS of every detection, -1 for those that find a box or are ignored; see tide_errors. [D]"""
    m = matches
    return np.select([(m.found >= 0) | m.ignored, (m.same_iou >= BACKGROUND) & (m.same_iou < FOREGROUND),
                      m.other_iou >= FOREGROUND, m.same_iou >= FOREGROUND, m.other_iou >= BACKGROUND],
                     [-1, LOCALIZATION, CLASSIFICATION, DUPLICATE, BOTH], BACKGROUND_KIND)


def background_errors(matches: Matches, count: int) -> np.ndarray:
    """The `count` detections with the highest scores, from CONFIDENT on, that show nothing annotated: indices, best
    first."""
    return np.flatnonzero((error_kinds(matches) == BACKGROUND_KIND) & (matches.scores >= CONFIDENT))[:count]


def operating_points(matches: Matches) -> list[OperatingPoint | None]:
    """For each class the score with the best F1, or None where no detection finds a box."""
    return [_best_f1(matches, label, boxes) for label, boxes in enumerate(matches.boxes)]


def _best_f1(matches: Matches, label: int, boxes: int) -> OperatingPoint | None:
    mine = (matches.labels == label) & ~matches.ignored
    scores = matches.scores[mine]
    found = np.cumsum(matches.found[mine] >= 0)
    if not len(found) or found[-1] == 0:
        return None
    kept = np.arange(1, len(found) + 1)
    f1 = 2 * found / (kept + boxes)
    f1[:-1][scores[:-1] == scores[1:]] = 0  # no threshold separates equal scores
    best = f1.argmax()
    return OperatingPoint(float(scores[best]), float(found[best] / kept[best]), float(found[best] / boxes),
                          float(f1[best]))


def _match_image(categories: np.ndarray, annotations: list[dict], rows: list[dict], excused: Sequence[int] = ()
                 ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Classes of the boxes of one image, and the arrays of Matches, with boxes counted from 0 and -1 for none.
    excused: ids of classes of which not all objects are annotated."""
    truth, truth_boxes = _arrays(categories, [a for a in annotations if not a["iscrowd"]])
    crowds, crowd_boxes = _arrays(categories, [a for a in annotations if a["iscrowd"]])
    labels, boxes = _arrays(categories, rows)
    scores = np.array([row["score"] for row in rows], float)
    order = np.argsort(-scores, kind="stable")
    labels, boxes, scores = labels[order], boxes[order], scores[order]

    iou = _overlaps(boxes, truth_boxes, crowd=False)
    same_class = labels[:, None] == truth
    on_crowd = _overlaps(boxes, crowd_boxes, crowd=True) >= FOREGROUND
    may_be_right = np.isin(categories[labels], list(excused))
    found, located = _assign(np.where(same_class, iou, 0)), _assign(iou)
    (same, same_iou), (other, other_iou) = _largest(np.where(same_class, iou, 0)), _largest(iou * ~same_class)
    return truth, {
        "scores": scores, "labels": labels, "bboxes": boxes,
        "found": found, "located": located,
        "ignored": (found < 0) & ((on_crowd & (labels[:, None] == crowds)).any(1) | may_be_right),
        "on_crowd": (located < 0) & (on_crowd.any(1) | may_be_right),
        "same": same, "same_iou": same_iou, "other": other, "other_iou": other_iou}


def _arrays(categories: np.ndarray, rows: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """Classes [n] and boxes [n, 4] xywh px of annotations or detections."""
    ids = np.array([row["category_id"] for row in rows], int)
    unknown = ids[~np.isin(ids, categories)]
    if len(unknown):
        raise UserError(f"a detection has category_id {unknown[0]}, which the annotations do not list")
    return np.searchsorted(categories, ids), np.array([row["bbox"] for row in rows], float).reshape(-1, 4)


def _rank(labels: np.ndarray) -> np.ndarray:
    """How many earlier entries have the same label."""
    order = np.argsort(labels, kind="stable")
    rank = np.empty(len(labels), int)
    rank[order] = np.arange(len(labels)) - np.searchsorted(labels[order], labels[order])
    return rank


def _overlaps(boxes: np.ndarray, others: np.ndarray, crowd: bool) -> np.ndarray:
    """IoU [n, m]; with a crowd the share of the box that lies in it."""
    return np.array(mask.iou(boxes, others, [crowd] * len(others)), float).reshape(len(boxes), len(others))


def _assign(iou: np.ndarray) -> np.ndarray:
    """In the order of the rows, each takes the free column with the largest IoU, if that is at least FOREGROUND."""
    free = np.where(iou >= FOREGROUND, iou, 0)
    taken = np.full(len(iou), -1)
    for row in np.flatnonzero(free.any(1)):
        column = free[row].argmax()
        if free[row, column]:
            taken[row] = column
            free[:, column] = 0
    return taken


def _largest(iou: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For every row the column with the largest IoU, -1 where all are 0, and that IoU."""
    if not iou.shape[1]:
        return np.full(len(iou), -1), np.zeros(len(iou))
    column, largest = iou.argmax(1), iou.max(1)
    return np.where(largest > 0, column, -1), largest


def _fix(matches: Matches, goal: np.ndarray) -> dict[str, np.ndarray]:
    """Detections find their box of `goal` [D] and have its class; only the best of those with the same one is kept."""
    best = np.zeros(len(goal), bool)
    best[np.unique(goal, return_index=True)[1]] = True  # the first of each has the highest score
    labels = matches.labels.copy()
    labels[goal >= 0] = matches.truth[goal[goal >= 0]]
    return {"keep": best | (goal < 0), "labels": labels, "found": goal}


def _ap50(matches: Matches, keep: np.ndarray | None = None, labels: np.ndarray | None = None,
          found: np.ndarray | None = None, without: np.ndarray | None = None) -> float | None:
    """COCO's AP50, with only some detections kept, other labels or found boxes, or without some boxes (bool [G])."""
    kept = ~matches.ignored if keep is None else keep & ~matches.ignored
    labels = (matches.labels if labels is None else labels)[kept]
    positive = (matches.found if found is None else found)[kept] >= 0
    before = matches.boxes
    boxes = before if without is None else np.bincount(matches.truth[~without], minlength=len(before))
    aps = [_average_precision(positive[labels == k], boxes[k]) for k in np.flatnonzero(before)]
    return float(np.mean(aps)) if aps else None


def _average_precision(positive: np.ndarray, boxes: int) -> float:
    """positive [n] bool: which detections find a box, by descending score; boxes: how many there are to be found."""
    if boxes == 0:  # after fixing: nothing is left to be found, and nothing wrong should be
        return 0.0 if len(positive) else 1.0
    found = np.cumsum(positive)
    precision = found / np.arange(1, len(found) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.append(precision, 0)[np.searchsorted(found / boxes, RECALLS)].mean())
