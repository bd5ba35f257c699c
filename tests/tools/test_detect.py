import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from models import build_model
from tools.detect import main, parse_args
from util.config import Config
from util.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def detect(*arguments):
    return main(parse_args([*map(str, arguments), "--device", "cpu"]))


@pytest.fixture
def model(tiny_config, tmp_path):
    """The flags for a model with random weights, whose scores are all low."""
    Config(tiny_config).dump(tmp_path / "config.py")
    torch.save({"model": build_model(tiny_config)[0].state_dict(), "class_names": {i: f"thing {i}" for i in range(7)}},
               tmp_path / "weights.pth")
    return ["-c", tmp_path / "config.py", "--resume", tmp_path / "weights.pth", "--output_dir", tmp_path / "out"]


@pytest.fixture
def images(tmp_path):
    """Two pictures and a file that is none."""
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (120, 80), "green").save(folder / "green.jpg")
    Image.new("L", (500, 600), 90).save(folder / "grey.bmp")
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_a_folder_is_drawn_and_listed(model, images, tmp_path, capsys):
    assert detect(images, *model, "--score", 0) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"green.jpg", "grey.bmp.png", "detections.json"}
    assert Image.open(tmp_path / "out/grey.bmp.png").size == (500, 600)
    green, grey = json.loads((tmp_path / "out/detections.json").read_text())
    assert (green["file_name"], green["width"], green["height"]) == ("green.jpg", 120, 80)
    assert len(green["detections"]) == len(grey["detections"]) == 20
    scores = [row["score"] for row in green["detections"]]
    assert scores == sorted(scores, reverse=True)
    best = green["detections"][0]
    assert best["class"] == f"thing {best['category_id']}" and len(best["bbox"]) == 4
    assert "green.jpg: " in capsys.readouterr().out


def test_the_score_is_a_limit(model, images, tmp_path, capsys):
    assert detect(images / "green.jpg", *model, "--score", 1) == 0
    (green,) = json.loads((tmp_path / "out/detections.json").read_text())
    assert green["detections"] == [] and "green.jpg: nothing" in capsys.readouterr().out


def test_a_picture_that_cannot_be_read_does_not_stop_the_others(model, images, tmp_path, capsys):
    (images / "broken.jpg").write_bytes((images / "green.jpg").read_bytes()[:300])
    assert detect(images, *model) == 1
    assert [row["file_name"] for row in json.loads((tmp_path / "out/detections.json").read_text())] == [
        "green.jpg", "grey.bmp"]
    errors = capsys.readouterr().err
    assert "cannot read the image" in errors and f"skipped 1 that cannot be read: {images / 'broken.jpg'}" in errors


def test_a_picture_that_pillow_refuses_for_its_size_does_not_stop_the_others(model, images, tmp_path, capsys,
                                                                              monkeypatch):
    Image.new("1", (700, 700)).save(images / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700 * 700 // 2 - 1)  # twice as many are refused
    Image.new("RGB", (500, 400)).save(images / "zebra.png")
    assert detect(images, *model) == 1
    assert [row["file_name"] for row in json.loads((tmp_path / "out/detections.json").read_text())] == [
        "green.jpg", "grey.bmp", "zebra.png"]
    assert f"skipped 1 that cannot be read: {images / 'large.png'}" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["images", "images/../images", "linked"])
@pytest.mark.parametrize("single", [False, True])
def test_the_originals_are_never_written_over(model, images, tmp_path, name, single):
    (tmp_path / "linked").symlink_to(images)
    before = {path: path.read_bytes() for path in images.iterdir()}
    given = images / "green.jpg" if single else images
    with pytest.raises(UserError, match="green.jpg would be written over the input .*green.jpg"):
        detect(given, *model[:4], "--output_dir", tmp_path / name)
    assert {path: path.read_bytes() for path in images.iterdir()} == before


def test_a_link_in_the_output_folder_does_not_lead_to_another_picture(model, images, tmp_path):
    """An output takes the place of the link, and leaves what it leads to."""
    (tmp_path / "other.jpg").write_bytes(b"of somebody")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/green.jpg").symlink_to(tmp_path / "other.jpg")
    (tmp_path / "out/grey.bmp.png").hardlink_to(tmp_path / "other.jpg")
    assert detect(images, *model) == 0
    assert (tmp_path / "other.jpg").read_bytes() == b"of somebody"
    for name in ("green.jpg", "grey.bmp.png"):
        with Image.open(tmp_path / "out" / name) as picture:
            assert picture.format == ("JPEG" if name == "green.jpg" else "PNG")


def test_boxes_are_those_of_the_evaluation(model, coco_root, tmp_path):
    """The same pictures through main.py."""
    import main as program

    content = torch.load(model[3], weights_only=True)
    torch.save({"model": content["model"]}, model[3])  # its names are not those of the set
    assert program.main(program.parse_args([
        *map(str, model[:4]), "--coco_path", str(coco_root), "--eval", "--save_results", "--device", "cpu",
        "--num_workers", "0", "--output_dir", str(tmp_path / "eval")])) == 0
    wanted = json.loads((tmp_path / "eval/results/val_detections.json").read_text())
    name = json.loads((coco_root / "annotations/instances_val2017.json").read_text())["images"][0]
    wanted = sorted((row for row in wanted if row["image_id"] == name["id"]), key=lambda row: -row["score"])
    assert detect(coco_root / "val2017" / name["file_name"], *model, "--score", 0) == 0
    (image,) = json.loads((tmp_path / "out/detections.json").read_text())
    found = [row for row in image["detections"] if row["category_id"] > 0]  # the set has no class 0
    assert [row["score"] for row in found] == pytest.approx([row["score"] for row in wanted], abs=1e-3)
    assert found[0]["bbox"] == pytest.approx(wanted[0]["bbox"], abs=0.1)


def test_mistakes_are_told(model, images, tmp_path):
    shutil.copytree(images, tmp_path / "copy")
    (tmp_path / "empty").mkdir()
    for arguments, message in (([images, tmp_path / "copy"], "green.jpg and .*green.jpg would be one file"),
                               ([tmp_path / "empty"], "no image in the folder"), ([tmp_path / "x.jpg"], "x.jpg"),
                               ([images, "--score", 2], "--score 2.0 must be from 0 to 1")):
        with pytest.raises(UserError, match=message):
            detect(arguments[0], *arguments[1:], *model)
    done = subprocess.run([sys.executable, ROOT / "tools/detect.py", "x.jpg", "-c", "x", "--resume", "nowhere.pth"],
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "x.jpg" in done.stderr and "Traceback" not in done.stderr
