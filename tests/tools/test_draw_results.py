import json
import shutil
import subprocess
import sys

import pytest
from PIL import Image

from datasets.coco import read_annotations


def draw(*arguments):
    return subprocess.run([sys.executable, "tools/draw_results.py", *map(str, arguments)], capture_output=True,
                          text=True, timeout=120)


@pytest.fixture
def run_folder(tmp_path, coco_root):
    """A run that found every object and logged one epoch."""
    coco = read_annotations(coco_root, "val")
    rows = [{"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 0.9}
            for a in coco.anns.values()]
    (tmp_path / "results").mkdir()
    (tmp_path / "results/val_detections.json").write_text(json.dumps(rows))
    (tmp_path / "log.txt").write_text(json.dumps({"epoch": 0, "train_loss": 3.0, "train_lr": 1e-4,
                                                  "test_coco_eval_bbox": [0.5] * 12}) + "\n")
    return tmp_path


def test_writes_a_grid_and_curves(run_folder, coco_root):
    done = draw(run_folder, "--coco_path", coco_root, "--images", 4)
    assert done.returncode == 0, done.stderr
    for name in ("detections.png", "curves.png"):
        with Image.open(run_folder / name) as picture:
            assert min(picture.size) > 200


def test_a_picture_that_cannot_be_read_is_left_out(run_folder, coco_root, tmp_path):
    root = shutil.copytree(coco_root, tmp_path / "set")
    broken = sorted((root / "val2017").iterdir())[0]
    broken.write_bytes(broken.read_bytes()[:100])
    done = draw(run_folder, "--coco_path", root, "--images", 4)
    assert done.returncode == 1 and broken.name in done.stderr and "Traceback" not in done.stderr
    assert (run_folder / "detections.png").is_file()


def test_nothing_is_written_among_the_images(run_folder, coco_root, tmp_path):
    root = shutil.copytree(coco_root, tmp_path / "set")
    shutil.copytree(run_folder / "results", root / "val2017/results")
    (root / "val2017/detections.png").write_bytes(b"an image of the set")
    done = draw(root / "val2017", "--coco_path", root)
    assert done.returncode == 2 and "would be written into the input" in done.stderr
    assert (root / "val2017/detections.png").read_bytes() == b"an image of the set"


def test_missing_results_say_what_writes_them(tmp_path, coco_root):
    done = draw(tmp_path, "--coco_path", coco_root)
    assert done.returncode == 2 and "--save_results" in done.stderr and "Traceback" not in done.stderr
