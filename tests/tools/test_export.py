import dataclasses
import json
import sys

import pytest

from deploy import FORMATS
from tools.export import described, main, parse_args, planned
from util.errors import UserError


@pytest.fixture
def export(tiny_weights, tmp_path):
    """export(*flags): tools/export.py on the tiny detector, without a config where the weights are among the flags."""
    config, weights = tiny_weights

    def export(*flags, source=weights):
        return main(parse_args([str(source), "-c", str(config), "--output_dir", str(tmp_path / "out"),
                                *map(str, flags)]))

    return export


@pytest.mark.parametrize("flags, message", [
    (["--dtype", "bfloat16"], "--format onnx has no bfloat16, only float32, float16"),
    (["--format", "pt2", "--dtype", "int8", "--verify", "."], "--format pt2 has no int8"),
    (["--dtype", "int8"], "--dtype int8 needs images to measure ranges on: .* --verify DIR"),
    (["--sampler", "native"], "--format onnx has no --sampler native, only grid_sample, gather"),
    (["--size", "0", "640"], "--size 0 640 must be from 1"), (["--batch", "0"], "--batch 0 must be at least 1"),
    (["--verify_images", "0"], "--verify_images 0 must be at least 1"),
    (["--verify", "nowhere"], "nowhere"),
])
def test_what_cannot_be_built_is_an_error_and_nothing_is_written(export, tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        export(*flags)
    assert not (tmp_path / "out").exists()


def test_checkpoints_of_two_trainings_have_two_files():
    names = [[path.name for _, _, path in planned(parse_args([f"outputs/{run}/checkpoint_best.pth", "--format", "pt2",
                                                              "--dtype", "float32", "float16"]))] for run in "ab"]
    assert names == [[f"{run}_checkpoint_best.pt2", f"{run}_checkpoint_best_float16.pt2"] for run in "ab"]


@pytest.mark.parametrize("name", ["a.onnx", "a.pt2", "a.XML"])
def test_an_exported_file_is_no_source(export, name):
    with pytest.raises(UserError, match=f"{name} is an exported file already"):
        export(source=name)


def test_a_missing_package_is_named(export, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, FORMATS["pt2"], None)
    with pytest.raises(UserError, match="--format pt2 cannot be written here"):
        export("--format", "onnx", "pt2")
    assert not (tmp_path / "out").exists()


def test_weights_are_not_written_over(export, tiny_weights, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "tiny.pt2").symlink_to(tiny_weights[1])
    with pytest.raises(UserError, match="would be written over the input"):
        export("--format", "pt2")


@pytest.mark.slow
def test_a_file_is_written_and_verified(export, coco_root, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    code = export("--format", "onnx", "--size", 64, 96, "--uint8", "--verify", coco_root, "--verify_images", 3)
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "out/tiny.onnx.verify.json").read_text())
    assert result["images"] == 3 and result["exceeded"] == [] and code == 0
    assert "wrote " in printed and "within the tolerance (AP 0.001, score 0.01, box 0.005)" in printed


@pytest.mark.slow
def test_a_file_that_differs_is_an_error(export, coco_root, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("deploy.verify.TOLERANCES", {"float32": {"AP": 0.001, "box": -1}})
    assert export("--format", "pt2", "--size", 64, 96, "--verify", coco_root, "--verify_images", 2) == 1
    assert "over the tolerance (AP 0.001, box -1): box" in capsys.readouterr().out


@pytest.mark.parametrize("dtype, told", [
    ("float32", "87 images"), ("int8", "87 images, with weights in float32, not with this int8 file")])
def test_a_file_says_what_its_ap_was_measured_with(tiny_backend, dtype, told):
    card = dataclasses.replace(tiny_backend.card, measured={"AP": 0.5}, measured_on="87 images")
    args = parse_args(["weights.pth", "--dtype", dtype])
    artifact = described(dataclasses.replace(tiny_backend, card=card), args, dtype, "gather")
    assert artifact.card.measured == {"AP": 0.5} and artifact.card.measured_on == told
    assert described(tiny_backend, args, dtype, "gather").card == tiny_backend.card  # where nothing was measured
