"""A trained checkpoint as a small file that evaluates like it."""
import json

import pytest
import torch

from tools.export_weights import export
from util.checkpoint import read_checkpoint
from util.errors import UserError

AP = "test_coco_eval_bbox"


def test_the_small_file_evaluates_like_the_checkpoint_and_starts_a_training(call, coco_root, tmp_path):
    options = ["epochs=1", "use_ema=True", "num_classes=auto", "dn_labelbook_size=None"]
    assert call("--output_dir", tmp_path / "run", options=options) == 0
    source, target = tmp_path / "run/checkpoint.pth", tmp_path / "weights/small.safetensors"
    export(source, target)
    assert target.stat().st_size < source.stat().st_size / 5
    small, whole = read_checkpoint(target), read_checkpoint(source)
    assert small["class_names"] == whole["class_names"]
    assert small["model"].keys() == whole["ema_model"].keys()
    for name, tensor in small["model"].items():
        wanted = whole["ema_model"][name]
        assert tensor.dtype == (torch.float16 if wanted.dim() > 1 and wanted.is_floating_point() else wanted.dtype)
        torch.testing.assert_close(tensor.to(wanted.dtype), wanted, rtol=1e-3, atol=1e-4)

    losses = []
    for config, weights in ((tmp_path / "run/config.py", source), (target.with_suffix(".py"), target)):
        assert call("-c", config, "--eval", "--resume", weights, "--output_dir", tmp_path / weights.stem, "--save_log"
                    ) == 0
        losses.append(json.loads((tmp_path / weights.stem / "eval/log.txt").read_text())["test_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)

    again = ["-c", target.with_suffix(".py"), "--pretrain_model_path", target, "--output_dir", tmp_path / "again"]
    assert call(*again) == 0


def test_what_cannot_be_exported_is_named(call, tmp_path):
    torch.save({"model": {"w": torch.zeros(2)}}, tmp_path / "released.pth")
    with pytest.raises(UserError, match="released.pth holds no config"):
        export(tmp_path / "released.pth", tmp_path / "x.safetensors")
    torch.save({"model": {"w": torch.zeros(2)}, "config": {}, "class_names": {1: "cat"}}, tmp_path / "own.pth")
    with pytest.raises(UserError, match="name it .safetensors"):
        export(tmp_path / "own.pth", tmp_path / "x.pth")
    (tmp_path / "x.safetensors").write_bytes(b"precious")
    with pytest.raises(UserError, match="exists already"):
        export(tmp_path / "own.pth", tmp_path / "x.safetensors")
