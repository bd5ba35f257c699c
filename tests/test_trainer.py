"""What a training does around its steps: stubs take the place of the steps and of the evaluation."""
import dataclasses
import itertools
import json
import logging
import os
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from datasets.coco_eval import summarize
from datasets.data import DetectionData
from engine import Evaluation
from main import parse_args
from trainer import Trainer, compare_config
from util.config import load_config
from util.errors import UserError
from util.loggers.several import RunLoggers
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
        return Trainer(run, parse_options(tiny_config | keys), decide_start(run), DetectionData(coco_root),
                       torch.device("cpu"))
    return make


@pytest.fixture
def train(make, monkeypatch):
    """train(*flags, aps=..., **config_keys): trains a linear layer, whose bias counts the batches; the evaluations give
    these APs, by epoch. Returns the exit code and the trainer."""
    def train(*flags, aps=(0.0,) * 9, finishes=True, **keys):
        current = 0

        def epoch(model, criterion, batches, state, *arguments, **options):
            nonlocal current
            current = state.epoch
            state.step += len(batches)
            with torch.no_grad():
                model.bias += len(batches)
            state.meters.update({"loss": 1.0, "skipped_images": 0.0})
            return finishes

        def summary(truth, detections, options):
            return dataclasses.replace(summarize(truth, detections, options), stats=(aps[current],) * 12)

        def write_summary(folder, *arguments):
            (folder / "summary.md").write_text("# Summary of the best\n")
            return ""

        monkeypatch.setattr("trainer.train_one_epoch", epoch)
        monkeypatch.setattr("trainer.evaluate", lambda *arguments, **options: Evaluation({}, {"loss": 2.0}))
        monkeypatch.setattr("trainer.summarize", summary)
        monkeypatch.setattr("reports.summary.write_summary", write_summary)
        trainer = make(*flags, **keys)
        model = nn.Linear(2, 2)
        nn.init.zeros_(model.bias)
        return trainer.train(model, nn.Identity(), nn.Identity()), trainer
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
    assert saved["class_names"] == DetectionData(coco_root).split("train").table.names
    assert saved["config"] == trainer.options.to_dict() and saved["config"]["modelname"] == "dino"
    assert parse_options(load_config(folder / "config.py")) == trainer.options
    assert [line[AP][0] for line in log_of(folder)] == [0.1, 0.3]
    assert log_of(folder)[0]["test_loss"] == 2.0 and log_of(folder)[0]["train_loss"] == 1.0
    assert checkpoint(folder, "checkpoint0000.pth")["epoch"] == 0


def test_numbered_checkpoints_and_evaluations_have_their_intervals(train, folder):
    train(epochs=5, eval_interval=3, save_checkpoint_interval=2)
    assert [AP in line for line in log_of(folder)] == [False, False, True, False, True]
    assert sorted(folder.glob("checkpoint0*")) == [folder / "checkpoint0001.pth", folder / "checkpoint0003.pth"]


@pytest.mark.parametrize("keys, kept", [
    ({"keep_best": 2, "save_checkpoint_interval": 99}, [1, 3]), ({"keep_best": 1, "save_checkpoint_interval": 99}, [1]),
    ({"keep_best": 2, "save_checkpoint_interval": 3}, [1, 2, 3, 5]), ({"save_checkpoint_interval": 99}, []),
    ({"keep_best": 9, "save_checkpoint_interval": 99}, [0, 1, 2, 3, 4]),  # epoch 5 had nothing to measure
    ({"keep_best": 2, "save_checkpoint_interval": 99, "eval_interval": 4}, [3])])
def test_the_best_of_the_numbered_checkpoints_are_kept(train, folder, keys, kept):
    train(epochs=6, aps=[0.3, 0.5, 0.2, 0.4, 0.4, -1], **keys)
    assert sorted(folder.glob("checkpoint0*")) == [folder / f"checkpoint{epoch:04}.pth" for epoch in kept]
    assert all(checkpoint(folder, path.name)["epoch"] == int(path.stem[-4:]) for path in folder.glob("checkpoint0*"))


def test_a_training_that_is_set_back_keeps_the_best_of_what_it_then_is(train, folder):
    keys = {"keep_best": 2, "save_checkpoint_interval": 99}
    train(epochs=4, aps=[0.1, 0.2, 0.3, 0.4], **keys)
    train("--resume", str(folder / "checkpoint0002.pth"), epochs=6, aps=[0.1, 0.2, 0.3, 0.1, 0.35, 0.2], **keys)
    assert sorted(path.name for path in folder.glob("checkpoint0*")) == ["checkpoint0002.pth", "checkpoint0003.pth",
                                                                         "checkpoint0004.pth"]


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
    _, trainer = train("--resume", "auto", epochs=3, aps=[0.4, 0.3, 0.2])
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
    assert "the old values, which the optimizer's state holds: lr 0.1, not 0.5; " in caplog.text
    caplog.clear()
    compare_config({"lr_drop": 5, "clip_max_norm": 1.0}, options, "a.pth")
    assert "the new values: clip_max_norm 1.0 -> 0.1, lr_drop 5 -> 11" in caplog.text and len(caplog.records) == 1


@pytest.mark.parametrize("keys, kept", [
    ({}, True), ({"lr": 1e-3, "lr_backbone": 1e-3, "weight_decay": 0.5, "lr_linear_proj_mult": 9.0}, True),
    ({"lr_drop": 1}, False), ({"multi_step_lr": True, "lr_drop_list": [0, 1]}, False), ({"warmup_steps": 1000}, False)])
def test_what_is_said_of_a_changed_schedule_holds(train, folder, capsys, keys, kept):
    start = {"lr_drop": 100, "param_dict_type": "default"}
    train(epochs=1, **start)
    before = checkpoint(folder)["optimizer"]["param_groups"]
    capsys.readouterr()
    train("--resume", "auto", epochs=2, **start | keys)
    groups = checkpoint(folder)["optimizer"]["param_groups"]
    assert ([g["lr"] for g in groups] == [g["lr"] for g in before]) == kept
    assert [g["weight_decay"] for g in groups] == [g["weight_decay"] for g in before]
    said = {key: "old" if "the old values" in line else "new"
            for line in capsys.readouterr().out.splitlines() for key in keys if f" {key} " in line}
    assert said == dict.fromkeys(keys, "old" if kept else "new")


@pytest.mark.parametrize("saved", [{"epochs": 1, "onecyclelr": True}, {"onecyclelr": False}])
def test_a_one_cycle_schedule_keeps_its_length_and_is_not_begun_or_ended_midway(saved):
    options = parse_options({"onecyclelr": True, "epochs": 2})
    (key, old), *_ = saved.items()
    with pytest.raises(UserError, match=f"a.pth: a training with {key}={old} cannot be resumed with "):
        compare_config(saved, options, "a.pth")
    with pytest.raises(UserError, match="a training with onecyclelr=True cannot be resumed with False"):
        compare_config({"onecyclelr": True}, parse_options({}), "a.pth")


# loggers

class MemoryLogger:
    def __init__(self, fails=False):
        self.calls, self.fails = [], fails

    def __getattr__(self, name):
        def call(*arguments):
            self.calls.append((name, *arguments))
            if self.fails and name == "scalars":
                raise OSError(28, "No space left on device")
        return call


@pytest.fixture
def memory(monkeypatch):
    """The loggers of a training are opened(name, ...): two, the second of which fails."""
    loggers, opened = {"good": MemoryLogger(), "failing": MemoryLogger(fails=True)}, []

    def open_loggers(*arguments):
        opened.append(arguments)
        return RunLoggers({name: lambda one=one: one for name, one in loggers.items()})

    monkeypatch.setattr("trainer.open_loggers", open_loggers)
    return loggers, opened


def test_loggers_get_config_epochs_summary_and_pictures(train, folder, memory):
    folder.mkdir()
    (folder / "errors.png").touch()
    code, _ = train("--note", "x", "--logger", "tensorboard", epochs=2, aps=[0.1, 0.3])
    loggers, opened = memory
    (name, config), *epochs, text, picture, close = loggers["good"].calls
    assert opened == [(["tensorboard"], folder, 0, False)]
    assert name == "config" and config["epochs"] == 2 and config["run/note"] == "x" and "run/resume" not in config
    assert [(call[0], call[2], call[1]["coco/AP"], call[1]["train/loss"]) for call in epochs] == [
        ("scalars", 0, 0.1, 1.0), ("scalars", 1, 0.3, 1.0)]
    assert text == ("text", "summary", "# Summary of the best\n")
    assert picture == ("picture", "errors", folder / "errors.png") and close == ("close", True)


def test_a_failing_logger_is_told_once_and_ends_nothing(train, folder, memory, capsys):
    code, _ = train(epochs=3)
    assert code == 0 and [line["epoch"] for line in log_of(folder)] == [0, 1, 2]
    loggers, opened = memory
    assert [call[0] for call in loggers["failing"].calls] == ["config", "scalars"]
    assert capsys.readouterr().out.count("failing is left out from now on") == 1
    assert list(opened[0][0]) == ["tensorboard"]


def test_loggers_go_on_with_a_resumed_run_and_hear_of_a_stop(train, folder, memory):
    train(epochs=2, finishes=False)
    loggers, opened = memory
    assert loggers["good"].calls[-1] == ("close", False)
    train("--resume", "auto", epochs=2)
    assert [arguments[2:] for arguments in opened] == [(0, False), (0, True)]


def test_only_the_main_process_logs(make, memory, monkeypatch):
    monkeypatch.setattr("trainer.is_main", lambda: False)
    trainer = make()
    trainer._open_logs(nn.Linear(2, 2), None)
    trainer.loggers.scalars({"a/b": 1.0}, 0)
    assert memory[1] == [] and memory[0]["good"].calls == []


# runs that are killed

class Killed(BaseException):
    pass


def kill_at_write(monkeypatch, number):
    """The process is killed where it would give its write of that number (from 0) its name."""
    count, replace = -1, os.replace

    def dying(source, target):
        nonlocal count
        count += 1
        if count == number:
            raise Killed
        replace(source, target)

    monkeypatch.setattr("os.replace", dying)


def results(folder):
    """What a run leaves: per checkpoint its weights and counters, the log without times, TensorBoard's epochs."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    board = EventAccumulator(str(folder / "tensorboard")).Reload()
    saved = {path.name: checkpoint(folder, path.name) for path in folder.glob("*.pth")}
    parts = ("epoch", "step", "best", "stale", "is_best")
    return ({name: [content["model"]["bias"].tolist(), *(content[part] for part in parts)]
             for name, content in saved.items()},
            [{name: value for name, value in line.items() if name not in ("seconds", "step_seconds", "peak_memory_mb")}
             for line in log_of(folder)],
            [(event.step, event.value) for event in board.Scalars("coco/AP")],
            sorted(path.name for path in folder.iterdir()))


@pytest.mark.parametrize("keep_best, copies", [(0, 2), (2, 4)])  # epochs 1 and 3 by number; also 0 and 2
def test_a_run_killed_at_any_write_ends_as_one_never_killed(train, tmp_path, monkeypatch, keep_best, copies):
    # TensorBoard reads files by name: time in seconds, process, and a number that is not padded (9 after 10).
    numbers = itertools.count(10_000)
    monkeypatch.setattr("tensorboard.summary.writer.event_file_writer._global_uid.get", lambda: next(numbers))
    keys = {"epochs": 5, "early_stop": 2, "save_checkpoint_interval": 2, "aps": [0.1, 0.3, 0.2, 0.1, 0.9],
            "keep_best": keep_best}
    train("--output_dir", str(tmp_path / "whole"), **keys)
    wanted = results(tmp_path / "whole")
    assert wanted[0]["checkpoint.pth"][3:5] == [0.3, 2] and wanted[0]["checkpoint_best.pth"][1] == 1
    for number in range(99):
        flags = ["--output_dir", str(tmp_path / f"killed {number}"), "--resume", "auto"]
        with monkeypatch.context() as patch:
            kill_at_write(patch, number)
            try:
                train(*flags, **keys)
                break
            except Killed:
                pass
        train(*flags, **keys)
        ours = results(tmp_path / f"killed {number}")
        assert ours == wanted, f"killed at write {number}"
    assert number == 2 + 4 * 3 + 2 + copies  # config, arguments; per epoch twice the state and the log; best; numbered


def test_a_resumed_run_has_one_line_an_epoch_though_it_is_set_back(train, folder):
    train(epochs=4, save_checkpoint_interval=1, aps=[0.1, 0.2, 0.3, 0.4])
    train("--resume", str(folder / "checkpoint0001.pth"), epochs=3, aps=[0.0, 0.0, 0.2])
    assert [line["epoch"] for line in log_of(folder)] == [0, 1, 2]
    assert checkpoint(folder, "checkpoint_best.pth")["epoch"] == 3  # still the best model of the folder
    assert checkpoint(folder)["best"] == 0.4


def test_a_training_that_goes_on_in_another_folder_finds_a_best_model_there(train, folder, tmp_path, capsys):
    train(epochs=2, aps=[0.4, 0.1])
    train("--output_dir", str(tmp_path / "other"), "--resume", str(folder / "checkpoint.pth"), epochs=3,
          aps=[0.4, 0.1, 0.2])
    output = capsys.readouterr().out
    assert "the best val AP was 0.400; " in output and "has no checkpoint_best.pth" in output
    assert checkpoint(tmp_path / "other", "checkpoint_best.pth")["epoch"] == 2
    assert checkpoint(tmp_path / "other")["best"] == 0.2
    assert [line["epoch"] for line in log_of(tmp_path / "other")] == [2]


@pytest.mark.parametrize("entries", [{"log": "{"}, {"log": 3}, {"log": "{}"}, {"is_best": None}, {"log": "[1]"},
                                     {"epoch": torch.ones(2)}, {"epoch": 7}, {"is_best": torch.ones(2)}])
def test_a_checkpoint_with_a_damaged_log_is_refused(train, folder, entries):
    train(epochs=1)
    torch.save(checkpoint(folder) | entries, folder / "checkpoint.pth")
    with pytest.raises(UserError, match="checkpoint.pth: 'log' or 'is_best' is not what a training wrote"):
        train("--resume", "auto", epochs=2)


def test_an_epoch_that_has_fewer_batches_than_were_done_is_over(train, folder):
    train(epochs=2, finishes=False, batch_size=1)
    assert checkpoint(folder)["step"] == 8
    train("--resume", "auto", epochs=1, batch_size=1, epoch_steps=3)
    assert len(log_of(folder)) == 1 and checkpoint(folder)["model"]["bias"].tolist() == [8, 8]


def test_a_resumed_quick_look_has_no_further_batches(train, folder):
    train("--debug", epochs=1, batch_size=1, finishes=False)
    done = checkpoint(folder)["step"]
    train("--debug", "--resume", "auto", epochs=1, batch_size=1)
    assert checkpoint(folder)["model"]["bias"].tolist() == [done, done] and len(log_of(folder)) == 1
