import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

import compare_recipes
from util.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
STAND_IN = Path(__file__).with_name("stand_in.py")


@pytest.fixture
def compare(tmp_path, config_file, monkeypatch):
    """compare(text, *flags): the exit code of the tool on such a file, with stand-ins for the trainings."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    threads = torch.get_num_threads()

    def compare(text, *flags):
        (tmp_path / "r.yaml").write_text(text)
        args = compare_recipes.parse_args(["-c", str(config_file), "--recipes", str(tmp_path / "r.yaml"),
                                           "--output_dir", str(tmp_path / "out"), "--device", "cpu", *flags])
        return compare_recipes.main(args, STAND_IN)

    yield compare
    torch.set_num_threads(threads)
    for number, handler in handlers.items():
        signal.signal(number, handler)


RECIPES = "base: {lr: 0.1}\ngood: {lr: 0.3}\nsame: {lr: 0.1}\n"


def test_the_tables_say_what_helps(compare, tmp_path, capsys):
    assert compare(RECIPES, "--seeds", "5") == 0
    text = (tmp_path / "out/recipes.md").read_text()
    rows = {line.split()[1]: line for line in text.splitlines()[3:7]}
    assert "+20.00 [+20.00, +20.00] | better " in rows["good"] and "| undecided " in rows["same"]
    assert text in capsys.readouterr().out and "program version: abc" in text and "lr=0.3" in text
    content = json.loads((tmp_path / "out/recipes.json").read_text())
    assert list(content["recipes"]) == ["base", "good", "same"] and content["about"]["failed"] == []
    assert [run["seed"] for run in content["recipes"]["good"]["runs"]] == [0, 1, 2, 3, 4]
    with Image.open(tmp_path / "out/recipes.png") as picture:
        assert min(picture.size) > 200


def test_finished_runs_are_not_repeated_and_further_seeds_are_added(compare, tmp_path, capsys):
    starts = tmp_path / "out/starts.json"
    assert compare(RECIPES, "--seeds", "1") == 0
    before = starts.read_text()
    assert compare(RECIPES, "--seeds", "1") == 0 and starts.read_text() == before
    assert "0 of 3 runs to do" in capsys.readouterr().out
    assert compare(RECIPES, "--seeds", "2") == 0
    added = [json.loads(line)["run"] for line in starts.read_text().removeprefix(before).splitlines()]
    assert added == ["base 1", "good 1", "same 1"]


def test_only_some_recipes_are_run_and_all_are_told(compare, tmp_path):
    assert compare(RECIPES, "--seeds", "1", "--only", "good") == 0
    content = json.loads((tmp_path / "out/recipes.json").read_text())["recipes"]
    assert [len(recipe["runs"]) for recipe in content.values()] == [0, 1, 0]
    assert compare(RECIPES, "--seeds", "1", "--only", "base", "same") == 0
    content = json.loads((tmp_path / "out/recipes.json").read_text())["recipes"]
    assert content["good"]["difference"]["mean"] == pytest.approx(0.2)
    with pytest.raises(UserError, match="--only goods: .*r.yaml has no such recipe. Did you mean 'good'"):
        compare(RECIPES, "--only", "goods")


def test_failures_are_told_at_the_end(compare, tmp_path, capsys):
    text = "base: {lr: 0.1}\nbroken: {weight_decay: 1.0}\nmute: {weight_decay: 2.0}\ngood: {lr: 0.2}"
    assert compare(text, "--seeds", "1") == 1
    errors = capsys.readouterr().err
    assert "broken, seed 0: FAILED, exit code 3" in errors and "these are the last words" in errors
    assert "mute, seed 0: FAILED, " in errors and "holds no val AP" in errors
    report = (tmp_path / "out/recipes.md").read_text()
    assert "- failed: broken, seed 0\n- failed: mute, seed 0\n" in report and "+10.00" in report


@pytest.mark.parametrize("recipes, flags, message", [
    ("a: {}\nb: {lrr: 1}", [], "recipe 'b': unknown config key"), ("a: {}\nb: {}", ["--seeds", "0"], "--seeds must be"),
    ("a: {}\nb: {}", ["--parallel", "999999"], "--parallel must be"),
])
def test_mistakes_are_found_before_anything_is_written(compare, tmp_path, recipes, flags, message):
    with pytest.raises(UserError, match=message):
        compare(recipes, *flags)
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_among_the_data(compare, tmp_path):
    with pytest.raises(UserError, match="would be written into the input"):
        compare("a: {}\nb: {}", "--data", str(tmp_path))
    assert not (tmp_path / "out").exists()


def test_the_flags_that_all_runs_share():
    args = compare_recipes.parse_args(["--recipes", "r", "--coco_path", "d", "--device", "cpu", "--amp",
                                       "--pretrain_model_path", "w"])
    assert compare_recipes.main_flags(args) == ["--data", str(Path.cwd() / "d"), "--device", "cpu",
                                                "--pretrain_model_path", "w", "--amp"]


def start(config_file, coco_root, out, recipes):
    command = [sys.executable, "tools/compare_recipes.py", "-c", str(config_file), "--data", str(coco_root),
               "--recipes", str(recipes), "--seeds", "2", "--output_dir", str(out), "--parallel", "2", "--device",
               "cpu"]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two processors")
def test_real_trainings_end_the_same_after_an_interruption(config_file, coco_root, tmp_path):
    recipes = tmp_path / "r.yaml"
    recipes.write_text("base: {epochs: 3, batch_size: 1, lr: 1e-3, checkpoint_steps: 0}\n"
                       "average: {epochs: 3, batch_size: 1, lr: 1e-3, checkpoint_steps: 0, use_ema: true, "
                       "ema_warmup_steps: 5}\n")
    whole = start(config_file, coco_root, tmp_path / "whole", recipes)
    output, _ = whole.communicate(timeout=500)
    assert whole.returncode == 0, output
    cut = start(config_file, coco_root, tmp_path / "cut", recipes)
    deadline = time.monotonic() + 240
    while not (tmp_path / "cut/base/seed_0/log.txt").exists():  # the first epoch is over
        assert cut.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    cut.send_signal(signal.SIGTERM)
    output, _ = cut.communicate(timeout=240)
    assert cut.returncode == 143 and "stopping: 2 runs" in output, output
    assert "stopped in epoch" in (tmp_path / "cut/base/seed_0/output.txt").read_text()
    rest = start(config_file, coco_root, tmp_path / "cut", recipes)
    output, _ = rest.communicate(timeout=500)
    assert rest.returncode == 0 and "base, seed 0: goes on in" in output and "base, seed 1: starts in" in output, output

    for run in ("base/seed_0", "base/seed_1", "average/seed_0", "average/seed_1"):
        ours, wanted = (torch.load(tmp_path / name / run / "checkpoint.pth", weights_only=True)
                        for name in ("cut", "whole"))
        for part in ("model", "ema_model")[:1 + run.startswith("average")]:
            assert all(torch.equal(ours[part][key], wanted[part][key]) for key in wanted[part])
    ours, wanted = (json.loads((tmp_path / name / "recipes.json").read_text())["recipes"] for name in ("cut", "whole"))
    for name in ("base", "average"):
        assert [[e["ap"] for e in run["evaluations"]] for run in ours[name]["runs"]] == \
            [[e["ap"] for e in run["evaluations"]] for run in wanted[name]["runs"]]
        assert all(0 < e["seconds"] < f["seconds"] for run in ours[name]["runs"]
                   for e, f in zip(run["evaluations"], run["evaluations"][1:]))  # of the whole training
