"""The trained model that comes with the project: it loads, and it finds blood cells."""
import json
import shutil
from pathlib import Path

import pytest
import torch

import main as program
from models import build_model
from util.checkpoint import load_weights, read_checkpoint
from util.config import load_config
from util.options import parse_options

ROOT = Path(__file__).resolve().parents[2]
CONFIG, WEIGHTS = ROOT / "weights/bccd_lite_dino.py", ROOT / "weights/bccd_lite_dino.safetensors"
DATA = ROOT.parent / "shared/data/bccd"


def test_the_weights_are_small_and_fit_their_config():
    assert WEIGHTS.stat().st_size <= 20e6
    model = build_model(load_config(CONFIG) | {"pretrained_backbone": False})[0].eval()
    load_weights(model, WEIGHTS)
    with torch.no_grad():
        outputs = model(torch.zeros(1, 3, 96, 128))
    assert all(outputs[name].isfinite().all() for name in ("pred_logits", "pred_boxes"))


def test_the_card_says_what_the_config_beside_it_and_the_evaluation_say():
    card = read_checkpoint("bccd_lite_dino")["card"]
    assert parse_options(card.config) == parse_options(load_config(CONFIG))
    assert card.class_names == {1: "RBC", 2: "WBC", 3: "Platelets"}
    assert card.thresholds == {1: 0.271, 2: 0.243, 3: 0.261} and "BCCD" in card.measured_on
    assert round(card.measured["AP"], 3) == 0.580 and round(card.measured["AP50"], 3) == 0.857


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the BCCD data")
def test_it_finds_the_cells_of_some_images(tmp_path):
    """On all val images AP50 is 0.857."""
    content = json.loads((DATA / "annotations/instances_val2017.json").read_text())
    content["images"] = content["images"][:6]
    ids = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/instances_val2017.json").write_text(json.dumps(content))
    (tmp_path / "val2017").mkdir()
    for image in content["images"]:
        shutil.copy(DATA / "val2017" / image["file_name"], tmp_path / "val2017")
    assert program.main(program.parse_args([
        "--coco_path", str(tmp_path), "--resume", "bccd_lite_dino", "--eval", "--save_log", "--device",
        "cpu", "--num_workers", "0", "--output_dir", str(tmp_path / "out")])) == 0
    (line,) = (tmp_path / "out/eval/log.txt").read_text().splitlines()
    assert json.loads(line)["test_coco_eval_bbox"][1] > 0.75
