"""What a training does around its steps: stubs take the place of the steps and of the evaluation."""
import dataclasses
import json
import logging
import os
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from datasets.coco import CocoFolder, class_names
from datasets.coco_eval import summarize
from engine import Evaluation
from main import parse_args
from trainer import Trainer, compare_config
from util.config import load_config
from util.errors import UserError
from util.options import parse_options
from util.run_options import RunOptions, decide_start

AP = "test_coco_eval_bbox"


@pytest.fixture(autouse=True)
def signal_handlers():
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def make(tiny_config, coco_root, folder):
    """make(*flags, **config_keys): a trainer with tiny images."""
    def make(*flags, **keys):
        args = parse_args(["-c", "unused.py", "--coco_path", str(coco_root), "--device", "cpu", "--num_workers", "0",
                           "--output_dir", str(folder), *flags])
        run = RunOptions.from_arguments(args, Path("unused.py"))
        return Trainer(run, parse_options(tiny_config | keys), decide_start(run), CocoFolder(coco_root),
                       torch.device("cpu"))
    return make


@pytest.fixture
def train(make, monkeypatch):
    """train(*flags, aps=..., **config_keys): trains a linear layer whose evaluations give these APs. Returns the exit
    code and the trainer."""
    def train(*flags, aps=(0.0,) * 9, finishes=True, **keys):
        values = iter(aps)

        def epoch(model, criterion, batches, state, *arguments, **options):
            state.step = len(batches)
            state.meters.update({"loss": 1.0, "skipped_images": 0.0})
            return finishes

        def summary(truth, detections):
            return dataclasses.replace(summarize(truth, detections), stats=(next(values, 0.0),) * 12)

        monkeypatch.setattr("trainer.train_one_epoch", epoch)
        monkeypatch.setattr("trainer.evaluate", lambda *arguments, **options: Evaluation({}, {"loss": 2.0}))
        monkeypatch.setattr("trainer.summarize", summary)
        monkeypatch.setattr("reports.summary.write_summary", lambda *arguments: "")
        trainer = make(*flags, **keys)
        return trainer.train(nn.Linear(2, 2), nn.Identity(), nn.Identity()), trainer
    return train


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]


def checkpoint(folder, name="checkpoint.pth"):
    return torch.load(folder / name, weights_only=True)


def test_what_is_saved_at_the_end_of_an_epoch(train, folder, coco_root):
    code, trainer = train(epochs=2, aps=[0.1, 0.3])
    assert code == 0
    assert {"checkpoint.pth", "checkpoint_best.pth", "checkpoint0000.pth", "checkpoint0001.pth", "config.py",
            "run.json", "info.txt", "log.txt"} <= set(os.listdir(folder))
    saved = checkpoint(folder)
    assert (saved["epoch"], saved["step"], saved["best"], saved["stale"]) == (1, 0, 0.3, 0)
    assert saved["class_names"] == class_names(CocoFolder(coco_root).annotations("train"))
    assert saved["config"] == trainer.options.to_dict() and saved["config"]["modelname"] == "dino"
    assert parse_options(load_config(folder / "config.py")) == trainer.options
    assert [line[AP][0] for line in log_of(folder)] == [0.1, 0.3]
    assert log_of(folder)[0]["test_loss"] == 2.0 and log_of(folder)[0]["train_loss"] == 1.0
    assert checkpoint(folder, "checkpoint0000.pth")["epoch"] == 0


def test_numbered_checkpoints_and_evaluations_have_their_intervals(train, folder):
    train(epochs=5, eval_interval=3, save_checkpoint_interval=2)
    assert [AP in line for line in log_of(folder)] == [False, False, True, False, True]
    assert sorted(folder.glob("checkpoint0*")) == [folder / "checkpoint0001.pth", folder / "checkpoint0003.pth"]


@pytest.mark.parametrize("aps, best, stale", [([0.3, 0.1, 0.3], 0, 2), ([0.1, 0.2, 0.1], 1, 1), ([-1, -1, -1], 2, 0),
                                             ([0.3, -1, -1], 0, 0), ([-1, 0.0, -1], 1, 0)])
def test_the_best_checkpoint(train, folder, aps, best, stale):
    train(epochs=3, aps=aps)
    assert checkpoint(folder, "checkpoint_best.pth")["epoch"] == best
    assert checkpoint(folder)["stale"] == stale


def test_early_stop(train, folder, capsys):
    train(epochs=9, early_stop=2, aps=[0.1, 0.3, 0.2, 0.3, 0.9])
    assert len(log_of(folder)) == 4 and "early stop: no better val AP in 2 evaluations" in capsys.readouterr().out
    train("--resume", "auto", epochs=9, early_stop=2)
    assert len(log_of(folder)) == 4  # it had ended


def test_a_stopped_epoch_is_saved_and_not_evaluated(train, folder):
    code, _ = train(epochs=2, finishes=False)
    assert code == 128 + signal.SIGTERM
    assert checkpoint(folder)["epoch"] == -1 and checkpoint(folder)["step"] == 4
    assert not (folder / "log.txt").exists()


def test_a_resumed_training_continues(train, folder):
    train(epochs=1, aps=[0.4])
    _, trainer = train("--resume", "auto", epochs=3, aps=[0.3, 0.2])
    assert trainer.start.checkpoint == str(folder / "checkpoint.pth")
    assert [line["epoch"] for line in log_of(folder)] == [0, 1, 2]
    assert (checkpoint(folder)["best"], checkpoint(folder)["stale"]) == (0.4, 2)
    assert checkpoint(folder, "checkpoint_best.pth")["epoch"] == 0


def test_the_epoch_a_training_starts_with(train, folder):
    train("--start_epoch", "2", epochs=3)
    assert [line["epoch"] for line in log_of(folder)] == [2]


def test_weights_to_start_from(train, folder, tmp_path):
    torch.save({"model": {"weight": torch.ones(2, 2), "bias": torch.ones(2)}}, tmp_path / "other.pth")
    train("--pretrain_model_path", str(tmp_path / "other.pth"), epochs=1)
    assert checkpoint(folder)["model"]["weight"].tolist() == [[1, 1], [1, 1]]


def test_the_batch_size_that_is_found_is_in_the_options_and_what_is_saved(train, folder, monkeypatch):
    monkeypatch.setattr("trainer.find_batch_size", lambda *arguments, most: most - 1)
    _, trainer = train("--find_batch_size", batch_size=4, epochs=1)
    assert (trainer.options.data.batch_size, trainer.options.training.grad_accum_steps) == (2, 2)
    assert trainer.train_loader.batch_sampler.batches.batch_size == 2
    for saved in (checkpoint(folder)["config"], load_config(folder / "config.py")):
        assert (saved["batch_size"], saved["grad_accum_steps"]) == (2, 2)


def test_a_changed_config_is_reported(caplog):
    options = parse_options({"lr": 0.5, "num_expansion": 3})
    with caplog.at_level(logging.WARNING):
        compare_config(options.to_dict(), options, "a.pth")
        compare_config({"masks": False, "num_expansion": 3}, options, "a.pth")  # of an earlier version
        assert not caplog.records
        compare_config({"lr": 0.1, "epochs": 12}, options, "a.pth")
    assert "a.pth was written with another config: lr 0.1 -> 0.5. " in caplog.text


def test_a_one_cycle_schedule_keeps_its_length():
    options = parse_options({"onecyclelr": True, "epochs": 2})
    with pytest.raises(UserError, match="a.pth: a one-cycle schedule of 1 epochs cannot be resumed with 2"):
        compare_config({"epochs": 1}, options, "a.pth")
