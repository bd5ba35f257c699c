"""The command line as a value, and what a run starts from."""
import dataclasses
from pathlib import Path

import pytest

from main import parse_args
from util.errors import UserError
from util.run_options import RunKind, RunOptions, Start, StartKind, decide_start


def options_of(*flags):
    return RunOptions.from_arguments(parse_args([*map(str, flags)]), Path("default/config.py"))


def training(folder, *flags):
    return options_of("--coco_path", "data", "--output_dir", folder, *flags)


@pytest.mark.parametrize("flags, kind, split", [
    ([], RunKind.TRAIN, "train"), (["--benchmark"], RunKind.TRAIN, "train"),
    (["--eval", "--resume", "a.pth"], RunKind.EVAL, "val"), (["--test", "--resume", "a.pth"], RunKind.TEST, "test"),
    (["--benchmark", "--benchmark_only"], RunKind.BENCHMARK, "val"),
    (["--eval", "--benchmark", "--benchmark_only"], RunKind.BENCHMARK, "val"),
])
def test_the_kind_of_run(flags, kind, split):
    run = options_of("--coco_path", "data", *flags)
    assert (run.kind, run.kind.split) == (kind, split)


def test_values_of_the_command_line():
    run = options_of("-c", "a/b.py", "--coco_path", "data", "--lr", "0.5", "--note", "x", "--benchmark",
                     "--benchmark_size", 64, 96, "--options", "lr=1e-3", "amp=cuda")
    assert (run.config_file, run.folder, run.data) == (Path("a/b.py"), Path("outputs/b"), "data")
    assert run.config_overrides == {"lr": 1e-3, "amp": "cuda"}
    assert run.benchmark_size == [64, 96] and run.seed == 42 and run.max_batches is None
    assert run.arguments["note"] == "x" and run.arguments["lr"] == "0.5"
    assert options_of("--coco_path", "data", "--debug").max_batches == 16
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.seed = 1


def test_the_default_config():
    run = options_of("--coco_path", "data")
    assert run.config_file == run.arguments["config_file"] == Path("default/config.py")
    assert run.folder == Path("outputs/config")


def test_the_config_that_weights_carry():
    run = options_of("--eval", "--resume", "a/small.safetensors", "--coco_path", "data", "--lr", "0.5")
    own = run.with_config_of({"config": {"modelname": "dino", "lr": 0.1, "sizes": {"a": 1}}})
    assert (own.config_file, own.folder) == (Path("a/small.safetensors"), Path("outputs/small"))
    assert own.load_config() == {"modelname": "dino", "lr": 0.5, "sizes": {"a": 1}}
    assert run.with_config_of({}) == run == run.with_config_of({"config": {}})
    chosen = options_of("--eval", "--resume", "x", "--coco_path", "data", "--output_dir", "out")
    assert chosen.with_config_of({"config": {"modelname": "dino"}}).folder == Path("out")
    with pytest.raises(UserError, match="'lr' is not a dict in a/small.safetensors"):
        dataclasses.replace(own, config_overrides={"lr.b": 1}).load_config()


def test_evaluations_of_two_runs_have_two_folders(tmp_path):
    for name in ("a", "b"):
        weights = tmp_path / name / "checkpoint_best.pth"
        run = options_of("--eval", "--resume", weights, "--coco_path", "data")
        assert run.with_config_of({"config": {"modelname": "dino"}}).folder == Path(f"outputs/{name}_checkpoint_best")


def test_the_config_of_a_run_stands_for_that_run(tmp_path):
    config, weights = tmp_path / "a/config.py", tmp_path / "a/checkpoint_best.pth"
    config.parent.mkdir()
    config.touch()
    assert options_of("-c", config, "--coco_path", "data").folder == Path("outputs/config")  # written by hand
    (tmp_path / "a/run.json").touch()
    assert options_of("-c", config, "--coco_path", "data", "--resume", "auto").folder == tmp_path / "a"
    evaluated = options_of("-c", config, "--coco_path", "data", "--eval", "--resume", weights)
    assert evaluated.folder == Path("outputs/a_checkpoint_best")
    assert options_of("-c", config, "--coco_path", "data", "--output_dir", "out").folder == Path("out")


def test_contradictions_are_refused():
    with pytest.raises(UserError, match="--eval and --test exclude each other"):
        options_of("--coco_path", "data", "--eval", "--test", "--resume", "a.pth")


@pytest.mark.parametrize("flags, words", [
    (["--num_workers", "-1"], "--num_workers must be at least 0"), (["--start_epoch", "-1"], "at least 0"),
    (["--seed", "-1"], "--seed must be at least 0"), (["--seed", str(2**32)], "--seed must be at most 4294967295"),
    (["--world_size", "0"], "--world_size must be at least 1"), (["--rank", "-1"], "--rank must be at least 0"),
    (["--local_rank", "-1"], "--local_rank must be at least 0"), (["--dist_timeout", "0"], "a positive number"),
    (["--dist_timeout", "nan"], "a positive number"), (["--dist_timeout", "inf"], "a positive number"),
    (["--benchmark", "--benchmark_size", "0", "64"], "--benchmark_size must be at least 1 px"),
])
def test_numbers_out_of_range_are_refused(flags, words):
    with pytest.raises(UserError, match=words):
        options_of("--coco_path", "data", *flags)
    assert options_of("--coco_path", "data", "--seed", 2**32 - 1, "--num_workers", 0).seed == 2**32 - 1


def test_loggers_are_checked_before_the_training(monkeypatch):
    assert options_of("--coco_path", "data").logger is None
    assert options_of("--coco_path", "data", "--logger", "tensorboard").logger == ["tensorboard"]
    with pytest.raises(UserError, match="--logger are for training"):
        options_of("--coco_path", "data", "--eval", "--resume", "a.pth", "--logger", "tensorboard")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="this needs trackio: pip install trackio"):
        options_of("--coco_path", "data", "--logger", "trackio")


def test_a_training_starts_with_an_imagenet_backbone(tmp_path):
    for flags in ([], ["--resume", "auto"]):
        assert decide_start(training(tmp_path, *flags)) == Start(StartKind.FRESH, imagenet_backbone=True)


def test_a_named_checkpoint_is_resumed(tmp_path):
    assert decide_start(training(tmp_path, "--resume", "a.pth")) == Start(StartKind.RESUMED, "a.pth")
    (tmp_path / "checkpoint.pth").touch()
    assert decide_start(training(tmp_path, "--resume", "a.pth")) == Start(StartKind.RESUMED, "a.pth")


@pytest.mark.parametrize("flags", [[], ["--resume", "auto"], ["--pretrain_model_path", "b.pth"]])
def test_checkpoints_without_the_latest_are_not_replaced(tmp_path, flags):
    (tmp_path / "checkpoint_best.pth").touch()
    with pytest.raises(UserError, match="holds checkpoint_best.pth, which a new training would replace"):
        decide_start(training(tmp_path, *flags))
    best = str(tmp_path / "checkpoint_best.pth")
    assert decide_start(training(tmp_path, "--resume", best)) == Start(StartKind.RESUMED, best)


@pytest.mark.parametrize("flags", [[], ["--pretrain_model_path", "b.pth"]])
def test_auto_resumes_the_checkpoint_of_the_folder(tmp_path, flags):
    latest = tmp_path / "checkpoint.pth"
    latest.touch()
    assert decide_start(training(tmp_path, "--resume", "auto", *flags)) == Start(StartKind.RESUMED, str(latest))


@pytest.mark.parametrize("flags", [[], ["--pretrain_model_path", "b.pth"]])
def test_a_training_is_not_overwritten(tmp_path, flags):
    (tmp_path / "checkpoint.pth").touch()
    with pytest.raises(UserError, match=f"{tmp_path} already holds a training. Pass --resume auto"):
        decide_start(training(tmp_path, *flags))


@pytest.mark.parametrize("resume", [[], ["--resume", "auto"]])
@pytest.mark.parametrize("ignore, imagenet", [([], False), (["--finetune_ignore", "class_embed"], True)])
def test_a_training_from_other_weights(tmp_path, resume, ignore, imagenet):
    run = training(tmp_path, "--pretrain_model_path", "b.pth", *resume, *ignore)
    assert decide_start(run) == Start(StartKind.PRETRAINED, "b.pth", imagenet)


def test_an_evaluation_and_a_benchmark_need_no_backbone_weights(tmp_path):
    (tmp_path / "checkpoint.pth").touch()  # of a training that they do not disturb
    assert decide_start(training(tmp_path, "--eval", "--resume", "a.pth")) == Start(StartKind.WEIGHTS, "a.pth")
    only = ("--benchmark", "--benchmark_only")
    assert decide_start(training(tmp_path, *only, "--resume", "a.pth")) == Start(StartKind.WEIGHTS, "a.pth")
    assert decide_start(training(tmp_path, *only)) == Start(StartKind.FRESH)


def test_processes_must_see_the_same_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("util.run_options.all_gather", lambda found: [found, True])
    with pytest.raises(UserError, match="nodes must share the output folder"):
        decide_start(training(tmp_path, "--resume", "auto"))
