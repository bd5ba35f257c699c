"""LVIS's and CrowdHuman's numbers from annotation files through main.py: those that their own programs give."""
import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

import main
import trainer
from datasets.benchmark_facts import NEGATIVE, NOT_EXHAUSTIVE
from engine import evaluate
from models import build_model
from tests.datasets.evaluation.scenes import recorded
from util.config import load_config

IMAGE = 1000  # id of the first image; the first class has the id 1
# AR1 and AR10, which LVIS does not have, are left out.
LVIS = {"AP": 0, "AP50": 1, "AP75": 2, "APs": 3, "APm": 4, "APl": 5, "AR@300": 8, "ARs@300": 9, "ARm@300": 10,
        "ARl@300": 11}


@pytest.fixture
def weights(config_file, tmp_path):
    """A checkpoint with random weights, that knows no names of classes."""
    torch.manual_seed(0)
    torch.save({"model": build_model(load_config(config_file))[0].state_dict()}, tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def write_set(root, scene, as_benchmark):
    """A scene as train and val set, with what as_benchmark adds to the content of the file."""
    entry, truth, _ = scene
    images = [{"id": IMAGE + i, "file_name": f"{i}.png", "width": int(width), "height": int(height)}
              for i, (width, height) in enumerate(truth.sizes)]
    annotations = [{"id": number, "image_id": IMAGE + image, "category_id": 1 + label, "bbox": box, "area": area}
                   for number, (image, label, box, area) in enumerate(zip(
                       truth.image.tolist(), truth.label.tolist(), truth.boxes.tolist(), truth.areas.tolist()), 1)]
    content = {"images": images[::-1], "annotations": annotations,  # in no order
               "categories": [{"id": 1 + i, "name": f"class {i}"} for i in range(entry["classes"])]}
    (root / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        (root / split / "val2017").mkdir(parents=True)
        for image in images:
            Image.new("RGB", (image["width"], image["height"])).save(root / split / image["file_name"])
    as_benchmark(content, entry, truth)
    for split in ("train2017", "val2017"):
        (root / f"annotations/instances_{split}.json").write_text(json.dumps(content))
    return root


def as_lvis(content, entry, truth):
    """As in LVIS 1.0: the name of an image is in its address."""
    for image in content["images"]:
        image |= {"coco_url": f"http://images.cocodataset.org/{image.pop('file_name')}", NEGATIVE: [],
                  NOT_EXHAUSTIVE: []}
    by_id = {image["id"]: image for image in content["images"]}
    for name, pairs in ((NEGATIVE, entry["negative"]), (NOT_EXHAUSTIVE, entry["not_exhaustive"])):
        for i, label in pairs:
            by_id[IMAGE + i][name].append(1 + label)
    for category, letter in zip(content["categories"], entry["frequency"]):
        category["frequency"] = letter


def as_crowdhuman(content, entry, truth):
    for annotation, ignored in zip(content["annotations"], truth.ignore.tolist()):
        annotation |= {"ignore": int(ignored), "vbox": annotation["bbox"]}


def rows(scene):
    found = scene[2]
    detections = {IMAGE + i: [] for i in range(scene[0]["images"])}
    for i, label, box, score in zip(found.image.tolist(), found.label.tolist(), found.boxes.tolist(),
                                    found.scores.tolist()):
        detections[IMAGE + i].append({"image_id": IMAGE + i, "category_id": 1 + label, "bbox": box, "score": score})
    return detections


@pytest.fixture(params=[0, 8 << 20], ids=["cached", "read"])
def least_bytes(request, monkeypatch):
    monkeypatch.setattr("datasets.cache.LEAST_BYTES", request.param)


@pytest.fixture
def measured(call, weights, tmp_path, monkeypatch):
    """measured(scene, as_benchmark): evaluates with --eval, with the scene's detections in place of the model's.
    Returns the line of log.txt, the console's table and summary.md."""
    def measured(scene, as_benchmark):
        def with_detections(*arguments, **options):
            result = evaluate(*arguments, **options)
            assert result.detections.keys() == rows(scene).keys()
            return dataclasses.replace(result, detections=rows(scene))

        monkeypatch.setattr(main, "evaluate", with_detections)
        root, out = write_set(tmp_path / "set", scene, as_benchmark), tmp_path / "out"
        assert call("--eval", "--resume", weights, "--save_log", "--summary", "--output_dir", out, data=root,
                    summary=True) == 0
        return (json.loads((out / "eval/log.txt").read_text()), (out / "eval/table.txt").read_text(),
                (out / "summary.md").read_text())
    return measured


def in_summary(text, name):
    """What summary.md says of a number."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {name} ")]
    return line.split("|")[2].strip()


@pytest.mark.parametrize("number", range(3))
def test_lvis(measured, number, least_bytes, capsys):
    scene = list(recorded("lvis"))[number]
    log, table, summary = measured(scene, as_lvis)
    wanted = scene[0]["results"]
    for name, place in LVIS.items():
        assert log["test_coco_eval_bbox"][place] == pytest.approx(wanted[name], abs=1e-9), name
    for name in ("APr", "APc", "APf"):
        assert log.get(f"test_{name}", -1) == pytest.approx(wanted[name], abs=1e-9), name
        assert f" {name:<72}= {wanted[name]:0.3f}" in table
        assert in_summary(summary, name) == ("-" if wanted[name] < 0 else f"{100 * wanted[name]:.1f}")
    assert "LVIS evaluation of" in capsys.readouterr().out and "LVIS's numbers" in summary


@pytest.mark.parametrize("number", range(3))
def test_crowdhuman(measured, number, least_bytes):
    scene = list(recorded("crowdhuman"))[number]
    log, table, summary = measured(scene, as_crowdhuman)
    for name, wanted in scene[0]["results"].items():
        assert log[f"test_{name}"] == pytest.approx(wanted, abs=1e-9)
        assert f" {name:<72}= {wanted:0.3f}" in table
        assert in_summary(summary, name) == f"{100 * wanted:.1f}"
    assert "COCO's and CrowdHuman's numbers" in summary


def test_a_training_logs_them_every_epoch(call, tmp_path, monkeypatch):
    scene = list(recorded("lvis"))[1]
    root = write_set(tmp_path / "set", scene, as_lvis)
    monkeypatch.setattr(trainer, "evaluate", lambda *arguments, **options: dataclasses.replace(
        evaluate(*arguments, **options), detections=rows(scene)))
    assert call("--output_dir", tmp_path / "out", data=root, summary=True) == 0
    lines = [json.loads(line) for line in (tmp_path / "out/log.txt").read_text().splitlines()]
    assert len(lines) == 2
    for line in lines:
        assert [line[f"test_{name}"] for name in ("APr", "APc", "APf")] == pytest.approx(
            [scene[0]["results"][name] for name in ("APr", "APc", "APf")], abs=1e-9)
    assert "| APr " in (tmp_path / "out/summary.md").read_text()
    numbers = json.loads((tmp_path / "out/summary.json").read_text())["stats"]
    assert np.isclose(numbers["APr"], scene[0]["results"]["APr"], atol=1e-9)
