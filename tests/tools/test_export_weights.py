"""A trained checkpoint as a small file that evaluates like it."""
import json

import pytest
import torch

from reports.conditions import conditions
from tools.export_weights import export
from util.checkpoint import checksum, read_checkpoint
from util.config import load_config
from util.errors import UserError
from util.options import parse_options
from util.run_folder import git_hash

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

    assert small["card"].config == whole["config"] and not small["card"].measured
    assert parse_options(small["config"]) == parse_options(load_config(target.with_suffix(".py")))

    losses = []
    for weights in (source, target):
        assert call("--eval", "--resume", weights, "--output_dir", tmp_path / weights.stem, "--save_log",
                    config=None) == 0  # both carry theirs
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


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint, and a summary.json beside it that was measured with it."""
    state = {"model": {"w": torch.ones(2)}, "class_names": {1: "cat", 3: "dog"},
             "config": {"modelname": "dino", "num_classes": 4}}
    torch.save(state, tmp_path / "checkpoint_best.pth")
    how = conditions(parse_options(state["config"]), torch.bfloat16)
    numbers = {"format": 2, "weights": checksum(state), "facts": {"data": "sets/pets"}, "images": 12, "evaluation": how,
               "stats": {"AP": 0.5, "APs": None}, "classes": {"1": {"threshold": 0.25}, "3": {"threshold": None}}}
    (tmp_path / "summary.json").write_text(json.dumps(numbers))
    return tmp_path / "checkpoint_best.pth"


def test_the_summary_beside_the_checkpoint_goes_along(checkpoint, tmp_path):
    export(checkpoint, tmp_path / "x.safetensors")
    card = read_checkpoint(tmp_path / "x.safetensors")["card"]
    assert card.thresholds == {1: 0.25} and card.measured == {"AP": 0.5}
    assert card.measured_on == "12 val images of pets, shorter side 800 px, in bfloat16" and card.commit == git_hash()


@pytest.mark.parametrize("change, words", [
    ({"nms_iou_threshold": 0.7}, "nms_iou_threshold=0.7 instead of -1"), ({"max_batches": 16}, "max_batches=16"),
    ({"shorter_side": 640}, "shorter_side=640 instead of 800"), ({"fix_size": True}, "fix_size=True instead of False")])
def test_numbers_of_another_evaluation_do_not_go_along(checkpoint, tmp_path, capsys, change, words):
    summary = tmp_path / "summary.json"
    content = json.loads(summary.read_text())
    summary.write_text(json.dumps(content | {"evaluation": content["evaluation"] | change}))
    with pytest.raises(UserError, match=f"summary.json was measured otherwise than .*{words}"):
        export(checkpoint, tmp_path / "x.safetensors", summary)
    export(checkpoint, tmp_path / "x.safetensors")
    assert words in capsys.readouterr().out and not read_checkpoint(tmp_path / "x.safetensors")["card"].measured


def test_the_small_file_takes_the_numbers_of_its_own_evaluation(call, trained, coco_root, tmp_path):
    for name in ("a", "b", "out"):
        (tmp_path / name).mkdir()
    small, again, out = tmp_path / "a/small.safetensors", tmp_path / "b/small.safetensors", tmp_path / "out"
    export(trained / "checkpoint.pth", small)
    assert call("--eval", "--resume", small, "--output_dir", out, "--summary", summary=True, config=None) == 0
    export(small, again, out / "summary.json")
    card = read_checkpoint(again)["card"]
    assert card.measured["AP"] == json.loads((out / "summary.json").read_text())["stats"]["AP"]
    assert card.measured_on == f"8 val images of {coco_root.name}, shorter side 96 px, in float32"
    with pytest.raises(UserError, match="other weights"):  # those before they were rounded
        export(trained / "checkpoint.pth", tmp_path / "c.safetensors", out / "summary.json")


def test_a_summary_of_other_weights_is_left_out_or_refused_if_it_was_named(checkpoint, tmp_path, capsys):
    other = tmp_path / "checkpoint.pth"
    torch.save(torch.load(checkpoint, weights_only=True) | {"model": {"w": torch.zeros(2)}}, other)
    with pytest.raises(UserError, match="summary.json was measured with other weights"):
        export(other, tmp_path / "x.safetensors", tmp_path / "summary.json")
    export(other, tmp_path / "x.safetensors")
    assert "without AP and best scores: " in capsys.readouterr().out
    card = read_checkpoint(tmp_path / "x.safetensors")["card"]
    assert not (card.thresholds or card.measured or card.measured_on)


def test_weights_that_were_exported_keep_their_card(checkpoint, tmp_path, capsys):
    export(checkpoint, tmp_path / "x.safetensors")
    (tmp_path / "again").mkdir()
    capsys.readouterr()
    export(tmp_path / "x.safetensors", tmp_path / "again/y.safetensors")
    first, again = (read_checkpoint(tmp_path / name)["card"] for name in ("x.safetensors", "again/y.safetensors"))
    assert first == again and again.thresholds == {1: 0.25} and "without" not in capsys.readouterr().out


def test_a_summary_elsewhere_is_used(checkpoint, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    summary = (tmp_path / "summary.json").rename(tmp_path / "elsewhere/summary.json")
    export(checkpoint, tmp_path / "x.safetensors", summary)
    assert read_checkpoint(tmp_path / "x.safetensors")["card"].measured == {"AP": 0.5}


def test_a_config_that_says_nothing_of_a_detector_is_refused(checkpoint, tmp_path):
    torch.save(torch.load(checkpoint, weights_only=True) | {"class_names": {9: "cow"}}, checkpoint)
    with pytest.raises(UserError, match="checkpoint_best.pth: it names the category id 9"):
        export(checkpoint, tmp_path / "x.safetensors")
    assert not list(tmp_path.glob("x.*"))
