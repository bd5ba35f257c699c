import json
import subprocess
import sys

import pytest
import torch

from average_checkpoints import average, best_checkpoints, main, parse_args
from util.checkpoint import read_checkpoint
from util.errors import UserError

CONFIG = {"modelname": "dino", "use_ema": False}


def save(path, epoch=0, ap=0.5, value=0.0, **entries):
    """A checkpoint of a finished epoch, whose weight is `value`."""
    record = {"epoch": epoch, **({} if ap is None else {"test_coco_eval_bbox": [ap, 0.9]})}
    torch.save({"model": {"w": torch.full((2,), value)}, "epoch": epoch, "log": json.dumps(record), "is_best": False,
                "config": CONFIG, "class_names": {1: "ring"}, **entries}, path)


@pytest.fixture
def run(tmp_path):
    """A run whose best epoch is 1; its checkpoint has two names, and so has that of epoch 3."""
    aps = [0.3, 0.6, 0.4, 0.4, None]
    for epoch, ap in enumerate(aps):
        save(tmp_path / f"checkpoint{epoch:04}.pth", epoch, ap, value=float(epoch))
    save(tmp_path / "checkpoint_best.pth", 1, 0.6, value=1.0)
    save(tmp_path / "checkpoint.pth", 3, 0.4, value=3.0)
    return tmp_path


def test_the_best_by_val_ap_and_each_epoch_once(run):
    assert [path.name for path in best_checkpoints(run, 3)] == ["checkpoint0001.pth", "checkpoint0002.pth",
                                                                "checkpoint0003.pth"]
    assert best_checkpoints(run, 4)[3].name == "checkpoint0000.pth"
    with pytest.raises(UserError, match="holds 4 checkpoints of different epochs with a val AP, not 5. .*keep_best"):
        best_checkpoints(run, 5)


def test_a_checkpoint_within_an_epoch_does_not_count(run):
    save(run / "checkpoint.pth", 4, 0.9, log=None)
    assert best_checkpoints(run, 1)[0].name == "checkpoint0001.pth"


def test_the_mean_of_the_best_lies_in_the_folder(run, capsys):
    main(parse_args([str(run)]))
    found = read_checkpoint(run / "averaged.pth")
    assert found["model"]["w"].tolist() == [2.0, 2.0]  # epochs 1, 2, 3
    assert found["config"] == CONFIG and found["class_names"] == {1: "ring"}
    assert found["averaged"] == [{"file": str(run / f"checkpoint000{epoch}.pth"), "epoch": epoch, "ap": ap}
                                 for epoch, ap in ((1, 0.6), (2, 0.4), (3, 0.4))]
    assert "checkpoint0001.pth: epoch 1, val AP 0.600" in capsys.readouterr().out
    with pytest.raises(UserError, match="averaged.pth exists already"):
        main(parse_args([str(run)]))


def test_single_files(run, tmp_path):
    out = tmp_path / "mean.pth"
    main(parse_args([str(run / "checkpoint0000.pth"), str(run / "checkpoint0004.pth"), "--output", str(out)]))
    assert read_checkpoint(out)["model"]["w"].tolist() == [2.0, 2.0]
    assert [source["ap"] for source in read_checkpoint(out)["averaged"]] == [0.3, None]


@pytest.mark.parametrize("use_ema, wanted", [(True, 5.0), (False, 1.0)])
def test_what_an_evaluation_takes_is_averaged(tmp_path, use_ema, wanted):
    for name, value in (("a", 0.0), ("b", 2.0)):
        save(tmp_path / name, value=value, config=CONFIG | {"use_ema": use_ema},
             ema_model={"w": torch.full((2,), value + 4)})
    assert average([tmp_path / "a", tmp_path / "b"])["model"]["w"].tolist() == [wanted] * 2


@pytest.mark.parametrize("entries, message", [
    ({"config": CONFIG | {"hidden_dim": 128}}, "a is of another detector than .*b: hidden_dim=256 instead of 128"),
    ({"config": CONFIG | {"use_ema": True}}, "use_ema=False instead of True"),
    ({"config": CONFIG | {"lrr": 1}}, "b: unknown config key 'lrr'"),
    ({"class_names": {1: "disc"}}, "other class names"),
    ({"config": CONFIG | {"classification": "softmax"}}, "classification='focal' instead of 'softmax'"),
    ({"model": {"v": torch.ones(2)}}, "v .* is only in .*b"),
    ({"log": "{"}, "b: 'log' or 'is_best' is not what a training wrote"),
])
def test_checkpoints_of_other_detectors_are_refused(tmp_path, entries, message):
    save(tmp_path / "a")
    save(tmp_path / "b", **entries)
    with pytest.raises(UserError, match=message):
        average([tmp_path / "a", tmp_path / "b"])


def test_what_only_a_training_reads_may_differ(tmp_path):
    save(tmp_path / "a", value=1.0)
    save(tmp_path / "b", value=2.0, config=CONFIG | {"lr": 1.0, "epochs": 99})
    assert average([tmp_path / "a", tmp_path / "b"])["model"]["w"].tolist() == [1.5, 1.5]


def test_weights_alone_are_refused(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "a")
    with pytest.raises(UserError, match="a holds no config and class names"):
        average([tmp_path / "a", tmp_path / "a"])


@pytest.mark.parametrize("arguments, message", [
    (["a", "b"], "--output says"), (["a", "b", "--best", "2", "--output", "c"], "--best is for the folder"),
    (["."], "holds 0 checkpoints"), ([".", "--best", "1"], "at least two"), (["a", "--output", "c"], "at least two"),
    (["a", "./a", "--output", "c"], "a is there twice"),
])
def test_mistakes_are_told(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        main(parse_args(arguments))


def tool(name, *arguments):
    done = subprocess.run([sys.executable, f"tools/{name}.py", *map(str, arguments)], capture_output=True, text=True,
                          timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_mean_of_a_training_is_read_by_every_program(call, coco_root, tmp_path):
    run, mean = tmp_path / "run", tmp_path / "run/averaged.pth"
    options = ["epochs=3", "use_ema=True", "ema_decay=0.9", "ema_warmup_steps=2", "keep_best=2",
               "save_checkpoint_interval=99", "lr=1e-3"]
    assert call("--output_dir", run, options=options) == 0
    tool("average_checkpoints", run, "--best", "2")
    kept = [read_checkpoint(path) for path in sorted(run.glob("checkpoint0*.pth"))]
    assert len(kept) == 2
    found = read_checkpoint(mean)["model"]
    for key, tensor in found.items():
        first, second = (checkpoint["ema_model"][key] for checkpoint in kept)
        torch.testing.assert_close(tensor, (first.double() + second.double()).div(2).to(first.dtype), rtol=0, atol=0)
    assert call("--eval", "--resume", mean, "--output_dir", tmp_path / "eval", "--save_results", config=None) == 0
    assert (tmp_path / "eval/results/val_detections.json").is_file()
    assert call("--pretrain_model_path", mean, "--output_dir", tmp_path / "next", options=["epochs=1"]) == 0
    tool("export_weights", mean, tmp_path / "mean.safetensors")
    assert read_checkpoint(tmp_path / "mean.safetensors")["class_names"] == read_checkpoint(mean)["class_names"]
    tool("detect", coco_root / "val2017", "--weights", mean, "--output_dir", tmp_path / "detect", "--score", "0.1")
    assert (tmp_path / "detect/detections.json").is_file()
