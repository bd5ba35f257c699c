import json
import runpy
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from datasets.adapt import SIZES
from datasets.data import DetectionData
from tests.datasets.formats import layouts
from tools.inspect_dataset import finest_stride, get_args_parser, main
from util.config import Config
from util.errors import UserError
from util.options import BackboneOptions, DataOptions


def run(*arguments):
    return main(get_args_parser().parse_args([*map(str, arguments), "--device", "cpu"]))


@pytest.fixture
def root(coco_root, tmp_path):
    """A copy of the set that a test may damage."""
    return shutil.copytree(coco_root, tmp_path / "set")


def damage(root, split, change):
    path = root / f"annotations/instances_{split}2017.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_sound_set_is_described_and_drawn(coco_root, tmp_path, capsys):
    assert run(coco_root, "--output_dir", tmp_path / "out", "--samples", 3) == 0
    printed = capsys.readouterr().out
    assert "A training can use this data" in printed and "1 disc" in printed and "Problems\n\nNone." in printed
    report = (tmp_path / "out/report.md").read_text()
    assert report.rstrip() in printed
    found = json.loads((tmp_path / "out/report.json").read_text())
    assert found["stops"] == [] and found["step"] is None and found["splits"]["train"]["images"] == 8
    for name in ("samples.png", "boxes.png"):
        with Image.open(tmp_path / "out" / name) as picture:
            assert min(picture.size) > 200 and np.asarray(picture.convert("L")).std() > 10


def test_samples_are_those_of_a_training_from_its_start_to_its_end(coco_root, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("tools.inspect_dataset.save_grid", lambda pictures, path, **_: seen.append(
        [np.asarray(picture).shape for picture in pictures]))
    keys = ["data_aug_scales=[64]", "data_aug_max_size=128", "data_aug_mosaic=1"]
    for phase in ("(0, 1)", "(0, 0.5)", "(0.99, 1)"):
        run(coco_root, "--output_dir", tmp_path / "out", "--samples", 8, "--options", *keys,
            f"aug_phases={{'mosaic': {phase}}}")
    always, half, never = seen
    assert half[:4] == always[:4] and half[4:] == never[4:] and always != never


def test_problems_are_told_and_the_copy_has_none(root, tmp_path, capsys):
    def spoil(content):
        content["annotations"][0]["bbox"] = [5, 5, 0, 3]
        content["annotations"][1]["category_id"] = 99

    damage(root, "train", spoil)
    (root / "val2017/000000000003.jpg").unlink()
    assert run(root, "--output_dir", tmp_path / "out", "--fix", tmp_path / "new") == 1
    printed = capsys.readouterr().out
    for text in ("train: 1 boxes of zero or negative width or height (--fix: left out)",
                 "train: 1 annotations of a category that is not listed (**stops a training**; --fix: left out)",
                 "val: 1 images without a file (**stops a training**", "000000000003.jpg", "A training would stop",
                 "Corrected copy", "val: 8 images -> 7"):
        assert text in printed
    assert not (tmp_path / "out/samples.png").exists()  # the training could not read it
    assert run(tmp_path / "new", "--output_dir", tmp_path / "out2", "--samples", 1) == 0


def test_with_a_config_a_step_is_measured(coco_root, tmp_path, tiny_config, capsys):
    tiny_config.num_classes = "auto"
    tiny_config.dn_labelbook_size = None
    tiny_config.num_queries = 3
    tiny_config.dump(tmp_path / "config.py")
    assert run(coco_root, "-c", tmp_path / "config.py", "--output_dir", tmp_path / "out", "--samples", 1) == 0
    printed = capsys.readouterr().out
    assert "peak memory:" in printed and "2 epochs:" in printed and "the model only 3 queries" in printed
    step = json.loads((tmp_path / "out/report.json").read_text())["step"]
    assert step["batch_size"] == 2 and step["seconds"] > 0 and 0 < step["peak_bytes"] < step["limit_bytes"]
    assert step["training_seconds"] == pytest.approx(2 * 4 * step["seconds"])
    assert max(step["worst_shape"]) <= 128
    counted = ("--options", "epoch_steps=5", "grad_accum_steps=2", "--output_dir", tmp_path / "counted", "--samples", 1)
    assert run(coco_root, "-c", tmp_path / "config.py", *counted) == 0
    step = json.loads((tmp_path / "counted/report.json").read_text())["step"]
    assert step["training_seconds"] == pytest.approx(2 * 5 * 2 * step["seconds"])
    assert step["passes"] == pytest.approx(2 * 5 * 2 * 2 / 8)
    tiny_config.update({name: getattr(DataOptions(), name) for name in SIZES})
    tiny_config.dump(tmp_path / "detr_sizes.py")
    small = ("--options", "image_size=48", "--output_dir", tmp_path / "small", "--samples", 1)
    assert run(coco_root, "-c", tmp_path / "detr_sizes.py", *small) == 0
    assert "at size 48" in capsys.readouterr().out
    assert max(json.loads((tmp_path / "small/report.json").read_text())["step"]["worst_shape"]) <= 80  # 48 * 1333 / 800
    few = ("--options", "num_classes=3", "--output_dir", tmp_path / "few")
    assert run(coco_root, "-c", tmp_path / "config.py", *few) == 1
    assert "set num_classes to 7 or 'auto'" in capsys.readouterr().out


def test_any_layout_becomes_coco(tmp_path, capsys):
    layouts.write_yolo(tmp_path / "yolo")
    (tmp_path / "yolo/labels/train/train_0.txt").write_text("7 0.5 0.5 0.25 0.25\n")
    flags = (tmp_path / "yolo", "--output_dir", tmp_path / "out", "--samples", 1)
    assert run(*flags, "--convert", "coco", tmp_path / "new") == 1
    assert "train_0.txt, line 1: the class 7, but" in capsys.readouterr().out
    assert run(tmp_path / "new", *flags[1:]) == 0
    content = json.loads((tmp_path / "new/annotations/instances_train2017.json").read_text())
    assert len(content["images"]) == 6 and [row["name"] for row in content["categories"]] == layouts.NAMES
    with pytest.raises(UserError, match="--convert yolo: only coco is written"):
        run(*flags, "--convert", "yolo", tmp_path / "other")
    with pytest.raises(UserError, match="choose one"):
        run(*flags, "--convert", "coco", tmp_path / "other", "--fix", tmp_path / "other")


def test_a_test_set_is_converted_too(tmp_path, capsys):
    layouts.write_yolo(tmp_path / "yolo", "train: images/train\nval: images/val\ntest: images/test\nnames: [a, b, c]\n")
    layouts.save("train", 0, tmp_path / "yolo/images/test")  # without a label file
    flags = ("--output_dir", tmp_path / "out", "--samples", 1)
    assert run(tmp_path / "yolo", *flags, "--convert", "coco", tmp_path / "new") == 0
    table = DetectionData(tmp_path / "new").split("test").table
    assert list(table.file_names) == ["train_0.png"] and table.names == {1: "a", 2: "b", 3: "c"}
    assert (tmp_path / "new/test2017/train_0.png").is_file() and "- test: 1 images without" in capsys.readouterr().out


def test_options_say_where_data_lies_and_what_is_split_off(tmp_path):
    layouts.write_yolo(tmp_path / "yolo", "train: images/train\nnames: [ant, bee, cat]\n")
    out = ("--output_dir", tmp_path / "out", "--samples", 1)
    assert run(tmp_path / "yolo", *out, "--options", "val_fraction=0.4") == 0
    found = json.loads((tmp_path / "out/report.json").read_text())
    assert [found["splits"][split]["images"] for split in ("train", "val")] == [4, 2]
    Config(modelname="dino").dump(tmp_path / "none.py")
    with pytest.raises(UserError, match="no data: pass --data PATH"):
        run("-c", tmp_path / "none.py", *out)
    places = [f"{name}={value[0]}" for name, value in layouts.write_places(tmp_path / "other").items()]
    assert run(*out, "--options", *places) == 0


@pytest.mark.parametrize("indices, dilation, stride", [([1, 2, 3], False, 8), ([0], False, 4), ([3], False, 32),
                                                       ([3], True, 16), ([2, 3], True, 16)])
def test_finest_stride(indices, dilation, stride):
    assert finest_stride(BackboneOptions(return_interm_indices=indices, dilation=dilation)) == stride


def test_errors_are_clear(root, tmp_path, monkeypatch, caplog):
    with pytest.raises(UserError, match="no config file"):
        run(root, "-c", tmp_path / "none.py")
    for flags in (["--output_dir", root / "val2017"], ["--fix", root / "train2017/new"]):
        with pytest.raises(UserError, match="the input .*2017: choose another place"):
            run(root, *flags)
    monkeypatch.setattr(sys, "argv", ["inspect_dataset.py", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path("tools/inspect_dataset.py", run_name="__main__")
    assert "no folder" in caplog.text
