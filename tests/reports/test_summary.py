"""summary.md and its pictures, for good results and for runs in which there is nothing to measure."""
import dataclasses
import json
from collections import defaultdict

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask

from datasets.benchmark_facts import HAS_VISIBLE
from datasets.coco import read_annotations
from datasets.coco_eval import coco_results, summarize
from reports.drawing import draw_closely
from reports.summary import PICTURES, write_summary

IMAGES = range(1, 9)


@pytest.fixture
def coco(coco_root):
    return read_annotations(coco_root, "val")


@pytest.fixture
def no_plots(monkeypatch):
    """For speed, where the text matters."""
    for name in ("plot_precision_recall", "plot_confusion_matrix", "plot_errors"):
        monkeypatch.setattr(f"reports.summary.{name}", lambda *arguments: None)


def evaluated(coco, find=True, images=IMAGES):
    """The summary of detections of every object, or of none."""
    detections = {}
    for image in images:
        rows = [a for a in coco.imgToAnns[image] if find and not a["iscrowd"]]
        boxes = torch.tensor([a["bbox"] for a in rows]).reshape(-1, 4).float()
        boxes[:, 2:] += boxes[:, :2]
        detections |= coco_results([image], [{"scores": torch.full((len(rows),), 0.75), "boxes": boxes,
                                              "labels": torch.tensor([a["category_id"] for a in rows])}], coco.cats)
    return summarize(coco, detections)


def cells(text, title):
    """Rows of the table under a heading."""
    part = text.split(f"## {title}\n")[1].split("\n## ")[0]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in part.splitlines() if line[:1] == "|"]


def test_the_summary_of_perfect_detections(coco, coco_root, tmp_path):
    console = write_summary(tmp_path / "new", evaluated(coco), coco_root / "val2017", facts={"checkpoint": "best.pth"})
    text = (tmp_path / "new/summary.md").read_text()
    boxes = sum(not a["iscrowd"] for a in coco.anns.values())
    assert f"**AP 100.0, AP50 100.0** on 8 images, {boxes} boxes, 6 classes" in text
    assert "- checkpoint: best.pth" in text
    header, _, *rows = cells(text, "Classes")
    assert header == ["class", "AP", "AP50", "AP75", "APs", "APm", "APl", "boxes", "best score", "precision", "recall"]
    assert [row[0] for row in rows] == ["disc", "ring", "square", "triangle", "star", "cross"]
    assert all(row[1:4] + row[8:] == ["100.0"] * 3 + ["0.750", "100.0", "100.0"] for row in rows)
    assert sum(int(row[7]) for row in rows) == boxes
    assert len(cells(text, "COCO's twelve numbers")) == 2 + 12
    assert [row[1:3] for row in cells(text, "Errors")[2:]] == [["0.0", "0"]] * 8
    header, _, *matrix, background = cells(text, "Confusion matrix")
    assert header == ["", *[row[0] for row in rows], "missed"]
    assert all(row[1 + i] == rows[i][7] and set(row[1:]) == {"0", rows[i][7]} for i, row in enumerate(matrix))
    assert background == ["**background**", *["0"] * 6, ""]
    assert console.startswith("AP 100.0, AP50 100.0") and "summary.md" in console and len(console.splitlines()) < 6
    assert "](report.html)" in text and "report.html" in console
    assert "square" in (tmp_path / "new/report.html").read_text(encoding="utf-8")
    assert "curves.png" not in text
    assert "](background.png)" not in text and not (tmp_path / "new/background.png").exists()
    for name in set(PICTURES) - {"curves.png", "background.png"}:
        assert f"]({name})" in text
        with Image.open(tmp_path / "new" / name) as picture:
            assert min(picture.size) > 200


def test_objects_that_cocos_limit_hides_are_named_and_not_blamed_on_the_detector(coco, coco_root, tmp_path, no_plots):
    row = coco.imgToAnns[1][0] | {"iscrowd": 0, "area": 9}
    coco.imgToAnns[1] = [row | {"id": 1000 + k, "bbox": [k % 20 * 4, k // 20 * 4, 3, 3]} for k in range(150)]
    coco.anns.update({many["id"]: many for many in coco.imgToAnns[1]})
    write_summary(tmp_path, evaluated(coco, images=[1]), coco_root / "val2017")
    text = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert "**50 of the objects, in 1 of the images, are beyond the 100 detections per class and image" in text
    errors = {kind: (gain, count) for kind, gain, count, _ in cells(text, "Errors")[2:]}
    assert errors["missed"] == errors["false negatives"] == ("0.0", "0")
    assert errors["beyond the limit"] == ("33.7", "50")  # recall up to 2/3: 67 of 101 samples
    write_summary(tmp_path, evaluated(coco, images=[2]), coco_root / "val2017")
    assert "the limit" not in (tmp_path / "summary.md").read_text(encoding="utf-8")


def test_the_numbers_of_lvis_and_crowdhuman_are_beside_the_others(coco, coco_root, tmp_path, no_plots):
    coco.dataset["info"][HAS_VISIBLE] = True
    console = write_summary(tmp_path, evaluated(coco), coco_root / "val2017")
    rows = cells((tmp_path / "summary.md").read_text(), "COCO's and CrowdHuman's numbers")
    counts = np.array([score.boxes for score in evaluated(coco).classes.values()])
    area = f"{100 * np.mean(1 - 1 / counts):.1f}"  # its curve begins at the first point, with one box found
    assert [row[:2] for row in rows[-2:]] == [["MR-2", "0.0"], ["AP50-CrowdHuman", area]]
    assert f", MR-2 0.0, AP50-CrowdHuman {area} on 8 images" in console.splitlines()[0]

    for image in coco.imgs.values():
        image["neg_category_ids"] = list(coco.cats)
    for category in coco.cats.values():
        category["frequency"] = "r"
    write_summary(tmp_path, evaluated(coco), coco_root / "val2017")
    rows = {row[0]: row[1:] for row in cells((tmp_path / "summary.md").read_text(), "LVIS's numbers")}
    assert rows["APr"][0] == "100.0" and rows["APc"][0] == "-"
    assert rows["AR300"] == ["100.0", "recall with 300"] and "AR100" not in rows
    numbers = json.loads((tmp_path / "summary.json").read_text())
    assert numbers["stats"]["APr"] == 1 and numbers["stats"]["APf"] is None


def test_close_ups_of_what_nobody_annotated(coco, coco_root, tmp_path, no_plots, monkeypatch):
    summary, drawn = evaluated(coco), []
    width, height = coco.imgs[2]["width"], coco.imgs[2]["height"]
    for score, box in ((0.6, [0, 0, 6, 5]), (0.9, [width - 5, height - 6, 5, 6]), (0.4, [width - 9, 1, 8, 8])):
        summary.detections[2].append({"image_id": 2, "category_id": 3, "score": score, "bbox": box})
    nothing = [row for row in summary.detections[2][-3:] if max(mask.iou(
        [row["bbox"]], [a["bbox"] for a in coco.imgToAnns[2]], [0] * len(coco.imgToAnns[2])).max(), 0) < 0.1]
    assert len(nothing) > 1
    real = draw_closely
    monkeypatch.setattr("reports.summary.draw_closely", lambda *arguments: drawn.append(arguments) or real(*arguments))
    write_summary(tmp_path, summary, coco_root / "val2017")
    assert "](background.png)" in (tmp_path / "summary.md").read_text()
    scores = [detection["scores"].item() for _, _, detection, _ in drawn]
    assert scores == pytest.approx(sorted((row["score"] for row in nothing), reverse=True))
    with Image.open(coco_root / "val2017" / coco.imgs[2]["file_name"]) as image:
        assert all(picture.tobytes() == image.convert("RGB").tobytes() for picture, *_ in drawn)
    with Image.open(tmp_path / "background.png") as picture:
        assert min(picture.size) > 200


def test_close_ups_do_not_cost_the_summary(coco, tmp_path, no_plots, caplog):
    """Of images with any id, that are gone, and in the wild numbers of a diverged model."""
    summary = evaluated(coco)
    coco.imgs["one"] = {"id": "one", "file_name": "gone.png", "width": 64, "height": 64}
    summary.detections["one"] = [{"image_id": "one", "category_id": 1, "score": 0.9, "bbox": [1, 1, 8, 8]}]
    summary = dataclasses.replace(summary, detections={str(image): rows for image, rows in summary.detections.items()})
    coco.imgs = {str(image): info for image, info in coco.imgs.items()}
    coco.imgToAnns = defaultdict(list, {str(image): rows for image, rows in coco.imgToAnns.items()})
    (tmp_path / "background.png").write_text("of an earlier summary")
    write_summary(tmp_path, summary, tmp_path)
    assert "gone.png" in caplog.text and not (tmp_path / "background.png").exists()
    assert "background.png" not in (tmp_path / "summary.md").read_text()


def test_faint_detections_are_no_close_ups(coco, coco_root, tmp_path, no_plots):
    summary = evaluated(coco)
    summary.detections[4].append({"image_id": 4, "category_id": 3, "score": 0.2, "bbox": [0, 0, 6, 5]})
    write_summary(tmp_path, summary, coco_root / "val2017")
    assert not (tmp_path / "background.png").exists()


@pytest.mark.parametrize("records", [
    [{"epoch": 0, "train_loss": 3.0, "train_lr": 1e-4, "test_coco_eval_bbox": [0.5] * 12}],
    [{"epoch": 0, "train_loss": 3.0, "train_lr": 1e-4}, {"epoch": 1, "train_loss": None, "train_lr": 1e-5}],
])
def test_curves_of_a_training(coco, tmp_path, no_plots, records):
    log = tmp_path / "log.txt"
    log.write_text("".join(json.dumps(record) + "\n" for record in records))
    write_summary(tmp_path, evaluated(coco, images=[1]), tmp_path, log)
    assert "](curves.png)" in (tmp_path / "summary.md").read_text()
    with Image.open(tmp_path / "curves.png") as picture:
        assert min(picture.size) > 200


@pytest.mark.parametrize("content", [None, ""])
def test_a_log_without_an_epoch_gives_no_curves(coco, tmp_path, no_plots, content):
    if content is not None:
        (tmp_path / "log.txt").write_text(content)
    write_summary(tmp_path, evaluated(coco, images=[1]), tmp_path, tmp_path / "log.txt")
    assert not (tmp_path / "curves.png").exists() and "curves.png" not in (tmp_path / "summary.md").read_text()


def test_no_detections(coco, tmp_path, no_plots):
    console = write_summary(tmp_path, evaluated(coco, find=False), tmp_path)
    text = (tmp_path / "summary.md").read_text()
    assert "AP 0.0" in console and "missed 100.0" in console
    assert all(row[1] == "0.0" and row[8:] == ["-"] * 3 for row in cells(text, "Classes")[2:])


@pytest.mark.parametrize("images", [[], [4]])  # nothing seen; an image without objects
def test_no_ground_truth(coco, tmp_path, images):
    console = write_summary(tmp_path, evaluated(coco, images=images), tmp_path)
    text = (tmp_path / "summary.md").read_text()
    assert console.startswith("AP -, AP50 -")
    assert all(row[1:] == ["-"] * 6 + ["0"] + ["-"] * 3 for row in cells(text, "Classes")[2:])
    assert all(row[1] == "-" for row in cells(text, "Errors")[2:] + cells(text, "COCO's twelve numbers")[2:])


def test_many_classes_list_the_confusions_only(coco, tmp_path, no_plots):
    coco.dataset["categories"] += [{"id": i, "name": f"more {i}"} for i in range(7, 30)]
    coco.createIndex()
    summary = evaluated(coco)
    write_summary(tmp_path, summary, tmp_path)
    assert "No class is taken for another." in (tmp_path / "summary.md").read_text()
    wrong = next(row for rows in summary.detections.values() for row in rows if row["category_id"] == 2)
    wrong["category_id"] = 29
    write_summary(tmp_path, summary, tmp_path)
    assert cells((tmp_path / "summary.md").read_text(), "Confusion matrix")[2:] == [["ring", "more 29", "1"]]


def test_awkward_class_names_keep_the_tables_whole(coco, tmp_path, no_plots):
    coco.cats[1]["name"] = "a|b $x$ \\frac{\nc"
    write_summary(tmp_path, evaluated(coco), tmp_path)
    text = (tmp_path / "summary.md").read_text()
    for title in ("Classes", "Confusion matrix"):
        header, _, first, *rows = cells(text, title)
        assert len(first) == len(header) == len(rows[0]) and "a\\|b $x$" in first[0]
