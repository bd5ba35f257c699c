"""main.py as its users call it: whole runs on a small generated set."""
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import datasets.formats.coco
import main
from datasets.coco import class_names, read_annotations
from datasets.coco_eval import summarize
from reports.conditions import differences
from reports.numbers import read_numbers
from util.checkpoint import checksum, read_checkpoint
from util.config import load_config
from util.errors import UserError
from util.options import parse_options

ROOT = Path(__file__).resolve().parents[1]
AP = "test_coco_eval_bbox"
AUTO = ["num_classes=auto", "dn_labelbook_size=None"]


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]


def losses_of(folder: Path) -> list[dict]:
    return [{k: v for k, v in line.items() if k.startswith(("train_", "test_")) or k == "epoch"}
            for line in log_of(folder)]


def spawn(*command, **options) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, *map(str, command)], cwd=ROOT, env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)


@pytest.fixture
def trained_auto(train_once):
    return train_once(*AUTO, "epochs=1")


def test_train_writes_log_checkpoints_config_and_scalars(trained):
    out = trained
    log = log_of(out)
    assert [line["epoch"] for line in log] == [0, 1]
    assert all(len(line[AP]) == 12 and line["train_loss"] > 0 and line["n_parameters"] > 0 for line in log)
    assert {"checkpoint.pth", "checkpoint_best.pth", "checkpoint0000.pth", "checkpoint0001.pth", "config.py",
            "run.json", "info.txt"} <= set(os.listdir(out))
    assert list((out / "tensorboard").iterdir())
    assert load_config(out / "config.py").hidden_dim == 32
    run = json.loads((out / "run.json").read_text())
    assert run["arguments"]["note"] == "first try" and run["git"]


def test_each_annotation_file_is_read_and_the_config_parsed_once(call, tmp_path, coco_root, monkeypatch):
    monkeypatch.setattr("measure.speed.SECONDS", 0.0)
    data = shutil.copytree(coco_root, tmp_path / "data")
    shutil.copytree(data / "val2017", data / "test2017")
    shutil.copy(data / "annotations/instances_val2017.json", data / "annotations/image_info_test-dev2017.json")
    files, parsed = [], []
    read, parse = datasets.formats.coco.read_coco_file, main.parse_options
    monkeypatch.setattr("datasets.formats.coco.read_coco_file",
                        lambda path, *root: files.append(path.stem) or read(path, *root))
    for module in ("main", "models"):
        monkeypatch.setattr(f"{module}.parse_options", lambda config: parsed.append(config) or parse(config))
    options = ["epochs=1", "epoch_steps=1", "num_classes=auto", "dn_labelbook_size=None"]
    weights = ["--resume", tmp_path / "run/checkpoint.pth"]
    train, val = "instances_train2017", "instances_val2017"
    for flags, wanted in (([], [train, val]), (["--eval", *weights], [val]),
                          (["--test", *weights], ["image_info_test-dev2017"]),
                          (["--benchmark", "--benchmark_only", "--debug"], [val])):
        assert call("--output_dir", tmp_path / "run", *flags, data=data, options=options) == 0
        assert sorted(files) == wanted and len(parsed) == 1
        files.clear(), parsed.clear()


def test_a_config_in_an_older_checkpoint_serves_a_resumed_training_and_an_evaluation(call, tmp_path, capsys):
    out = tmp_path / "run"
    assert call("--output_dir", out, options=["epochs=1"]) == 0
    checkpoint = torch.load(out / "checkpoint.pth", weights_only=True)
    checkpoint["config"] = {"modelname": "dino", "num_classes": 7, "masks": False, "key_aware": None, "lr": 1e-4}
    torch.save(checkpoint, out / "checkpoint.pth")
    capsys.readouterr()
    assert call("--output_dir", out, "--resume", "auto", options=["epochs=2"]) == 0
    assert "another config" not in capsys.readouterr().out and len(log_of(out)) == 2
    torch.save(checkpoint, tmp_path / "old.pth")
    assert call("--eval", "--resume", tmp_path / "old.pth", "--output_dir", tmp_path / "eval",
                options=["num_classes=auto"]) == 0


def test_a_run_resumed_after_an_epoch_equals_one_never_stopped(call, tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    options = ["epochs=3", "use_ema=True", "dropout=0.1"]
    assert call("--output_dir", whole, options=options) == 0
    stopped.mkdir()
    shutil.copy(whole / "checkpoint0000.pth", stopped / "checkpoint.pth")
    assert call("--output_dir", stopped, "--resume", "auto", options=options) == 0
    assert losses_of(stopped) == losses_of(whole)  # the first epoch from the checkpoint
    a, b = (torch.load(folder / "checkpoint.pth", weights_only=True) for folder in (whole, stopped))
    for part in ("model", "ema_model"):
        assert all(torch.equal(a[part][key], b[part][key]) for key in a[part])
    assert a["best"] == b["best"] and [g["lr"] for g in a["optimizer"]["param_groups"]] == [
        g["lr"] for g in b["optimizer"]["param_groups"]]


def test_a_failure_in_the_evaluation_does_not_lose_the_epoch(call, trained, tmp_path, monkeypatch):
    failed = tmp_path / "failed"

    def fail(*args, **kwargs):
        raise UserError("cannot use the image x.jpg")

    with monkeypatch.context() as patch, pytest.raises(UserError):
        patch.setattr("trainer.evaluate", fail)
        call("--output_dir", failed)
    assert torch.load(failed / "checkpoint.pth", weights_only=True)["step"] == 4
    assert call("--output_dir", failed, "--resume", "auto") == 0
    assert losses_of(failed) == losses_of(trained)


def test_a_changed_config_is_reported_at_a_resume(call, tmp_path, capsys):
    assert call("--output_dir", tmp_path / "run", options=["epochs=1"]) == 0
    assert call("--output_dir", tmp_path / "run", "--resume", "auto", options=["epochs=2", "lr=0.5"]) == 0
    output = capsys.readouterr().out
    assert "the old values, which the optimizer's state holds: lr 0.0001, not 0.5" in output
    assert "the new values: epochs 1 -> 2" in output


def test_a_one_cycle_training_keeps_its_length(call, tmp_path):
    assert call("--output_dir", tmp_path / "run", options=["epochs=1", "onecyclelr=True"]) == 0
    with pytest.raises(UserError, match="epochs=1 cannot be resumed with 2, .*--pretrain_model_path"):
        call("--output_dir", tmp_path / "run", "--resume", "auto", options=["epochs=2", "onecyclelr=True"])


def test_a_val_set_without_boxes_gives_no_ap(call, tmp_path, coco_root, capsys):
    data = tmp_path / "data"
    shutil.copytree(coco_root, data)
    path = data / "annotations/instances_val2017.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"annotations": []}))
    assert call("--output_dir", tmp_path / "run", data=data, options=["epochs=1"]) == 0
    assert log_of(tmp_path / "run")[0][AP][0] == -1 and "no ground-truth boxes" in capsys.readouterr().out
    assert (tmp_path / "run/checkpoint_best.pth").exists()


def test_nothing_is_written_among_the_images(call, coco_root):
    before = sorted((coco_root / "val2017").iterdir())
    with pytest.raises(UserError, match="would be written into the input .*val2017"):
        call("--output_dir", coco_root / "val2017" / "run")
    assert sorted((coco_root / "val2017").iterdir()) == before


def test_a_full_folder_is_not_overwritten(call, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "checkpoint.pth").write_bytes(b"precious")
    with pytest.raises(UserError, match="--resume auto"):
        call("--output_dir", out)
    assert (out / "checkpoint.pth").read_bytes() == b"precious"


def test_evaluation_of_a_checkpoint(call, trained, tmp_path, capsys):
    out = tmp_path / "run"
    out.mkdir()
    shutil.copy(trained / "log.txt", out)  # for the curves
    assert call("--eval", "--resume", trained / "checkpoint.pth", "--output_dir", out, "--save_results", "--save_log",
                "--per_class", "--summary", summary=True) == 0
    line, wanted = json.loads((out / "eval/log.txt").read_text()), log_of(trained)[-1]
    assert line[AP] == wanted[AP] and line["test_loss"] == pytest.approx(wanted["test_loss"])
    assert "Average Precision" in (out / "eval/table.txt").read_text()
    rows = json.loads((out / "results/val_detections.json").read_text())
    assert rows and {"image_id", "category_id", "bbox", "score"} == set(rows[0])
    summary = (out / "summary.md").read_text()
    assert f"AP {100 * line[AP][0]:.1f}" in summary and f"- checkpoint: {trained / 'checkpoint.pth'}" in summary
    assert all((out / f"{name}.png").exists() for name in ("curves", "precision_recall", "confusion_matrix", "errors"))
    weights = checksum(read_checkpoint(trained / "checkpoint.pth"))
    numbers = read_numbers(out / "summary.json", weights)
    assert numbers.stats["AP"] == pytest.approx(line[AP][0])
    assert not differences(numbers.evaluation, parse_options(read_checkpoint(trained / "checkpoint.pth")["config"]))
    assert str(out / "summary.md") in capsys.readouterr().out


def test_test_set_without_annotations(call, trained, tmp_path, coco_root):
    data = tmp_path / "data"
    shutil.copytree(coco_root / "val2017", data / "test2017")
    (data / "annotations").mkdir()
    content = json.loads((coco_root / "annotations/instances_val2017.json").read_text())
    del content["annotations"]
    (data / "annotations/image_info_test-dev2017.json").write_text(json.dumps(content))
    assert call("--test", "--resume", trained / "checkpoint.pth", "--output_dir", tmp_path / "out", data=data) == 0
    rows = json.loads((tmp_path / "out/results/test_detections.json").read_text())
    assert {row["image_id"] for row in rows} == {image["id"] for image in content["images"]}
    assert all(len(row["bbox"]) == 4 and row["bbox"][2] >= 0 for row in rows)


def test_auto_classes_come_from_the_data_and_stay_in_the_checkpoint(call, trained_auto, tmp_path, coco_root):
    checkpoint = torch.load(trained_auto / "checkpoint.pth", weights_only=True)
    assert checkpoint["class_names"] == class_names(read_annotations(coco_root, "train"))
    assert checkpoint["model"]["class_embed.0.weight"].shape[0] == 7
    assert call("--eval", "--resume", trained_auto / "checkpoint.pth", "--output_dir", tmp_path / "eval",
                options=AUTO) == 0


def test_fine_tuning_with_other_classes(call, trained, tmp_path, caplog):
    with caplog.at_level("INFO"):
        assert call("--pretrain_model_path", trained / "checkpoint.pth", "--output_dir", tmp_path / "tuned",
                    options=["num_classes=9", "dn_labelbook_size=9", "epochs=1", "lr=0", "lr_backbone=1e-12"]) == 0
    before, after = (torch.load(folder / "checkpoint.pth", weights_only=True)["model"]
                     for folder in (trained, tmp_path / "tuned"))
    assert after["class_embed.0.weight"].shape[0] == 9
    assert torch.equal(before["transformer.tgt_embed.weight"], after["transformer.tgt_embed.weight"])


@pytest.mark.parametrize("word, needed", [("label_enc", False), ("input_proj", False), ("layer2", True)])
def test_imagenet_weights_are_asked_for_only_where_the_checkpoint_leaves_the_backbone_out(
        call, trained, tmp_path, monkeypatch, word, needed):
    def download(name, url, backbone_dir):
        raise UserError("no network")

    monkeypatch.setattr("models.backbones.resnet.fetch_weights", download)
    arguments = ["--pretrain_model_path", trained / "checkpoint.pth", "--output_dir", tmp_path / "tuned",
                 "--finetune_ignore", word]
    options = ["pretrained_backbone=True", "epochs=1", "epoch_steps=1"]
    if needed:
        with pytest.raises(UserError, match="no network"):
            call(*arguments, options=options)
    else:
        assert call(*arguments, options=options) == 0


def classes_renamed(root, folder, splits):
    """A copy of a set in which every name belongs to the next id."""
    shutil.copytree(root, folder)
    for split in splits:
        path = folder / f"annotations/instances_{split}2017.json"
        content = json.loads(path.read_text())
        names = [category["name"] for category in content["categories"]]
        for category, name in zip(content["categories"], names[1:] + names[:1]):
            category["name"] = name
        path.write_text(json.dumps(content))
    return folder


def test_a_checkpoint_keeps_the_meaning_of_its_ids(call, trained_auto, tmp_path, coco_root):
    """Neither an evaluation nor a resumed training on a set that names the ids otherwise; the file stays as it was."""
    other, out = classes_renamed(coco_root, tmp_path / "other", ["train", "val"]), tmp_path / "run"
    shutil.copytree(trained_auto, out)
    before = (out / "checkpoint.pth").read_bytes()
    with pytest.raises(UserError, match="id 1 is 'ring' and 'disc'"):
        call("--eval", "--resume", out / "checkpoint.pth", "--output_dir", tmp_path / "eval", data=other, options=AUTO)
    with pytest.raises(UserError, match="id 1 is 'ring' and 'disc'.*--pretrain_model_path"):
        call("--resume", "auto", "--output_dir", out, data=other, options=[*AUTO, "epochs=2"])
    assert (out / "checkpoint.pth").read_bytes() == before


def test_a_val_set_that_names_the_ids_otherwise_is_told(call, tmp_path, coco_root, capsys):
    data = classes_renamed(coco_root, tmp_path / "data", ["val"])
    options = [*AUTO, "epochs=1", "epoch_steps=1"]
    assert call("--output_dir", tmp_path / "run", data=data, options=options) == 0
    assert "id 1 is 'disc' and 'ring'" in capsys.readouterr().out
    names = torch.load(tmp_path / "run/checkpoint.pth", weights_only=True)["class_names"]
    assert names == class_names(read_annotations(coco_root, "train"))


def test_a_class_in_val_alone(call, tmp_path, coco_root, capsys):
    """num_classes='auto' counts the train set's: the message does not advise it again, and its advice works."""
    data = shutil.copytree(coco_root, tmp_path / "data")
    path = data / "annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    content["categories"] = [category for category in content["categories"] if category["id"] <= 3]
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] <= 3]
    path.write_text(json.dumps(content))
    options = ["dn_labelbook_size=None", "epochs=1", "epoch_steps=1"]
    with pytest.raises(UserError, match="num_classes=4, .* id 6 .'cross'.: set num_classes to 7") as error:
        call("--output_dir", tmp_path / "run", data=data, options=[*options, "num_classes=auto"])
    assert "'auto'" not in str(error.value)
    assert call("--output_dir", tmp_path / "run", data=data, options=[*options, "num_classes=7"]) == 0
    assert "classes that the train set lacks" in capsys.readouterr().out
    assert call("--eval", "--resume", tmp_path / "run/checkpoint.pth", "--output_dir", tmp_path / "eval", data=data,
                options=[*options, "num_classes=auto"]) == 0


def test_start_epoch_moves_the_schedule(call, tmp_path):
    assert call("--output_dir", tmp_path / "run", "--start_epoch", 1) == 0
    (line,) = log_of(tmp_path / "run")
    assert line["epoch"] == 1 and line["train_lr"] == pytest.approx(1e-5)  # lr_drop = 1


def test_debug_and_fix_size(call, tmp_path, monkeypatch):
    monkeypatch.setattr("util.run_options.DEBUG_BATCHES", 2)
    assert call("--output_dir", tmp_path / "run", "--debug", "--fix_size", options=["epochs=1"]) == 0
    checkpoint = torch.load(tmp_path / "run/checkpoint.pth", weights_only=True)
    assert max(s["step"] for s in checkpoint["optimizer"]["state"].values()) == 2


@pytest.mark.parametrize("schedule", [["onecyclelr=True"], ["multi_step_lr=True", "lr_drop_list=[1]"]])
def test_schedules_with_accumulation_and_parameter_groups(call, tmp_path, schedule):
    groups = "param_dict_type=large_wd" if "onecyclelr=True" in schedule else "param_dict_type=ddetr_in_mmdet"
    assert call("--output_dir", tmp_path / "run", "--amp", options=[*schedule, "grad_accum_steps=3", groups]) == 0
    rates = [line["train_lr"] for line in log_of(tmp_path / "run")]
    assert rates[0] != rates[1]


def test_epochs_of_a_fixed_length_with_steps_of_two_batches(call, tmp_path):
    options = ["epochs=2", "epoch_steps=3", "grad_accum_steps=2", "lr_drop=1", "warmup_steps=2"]
    assert call("--output_dir", tmp_path / "run", options=options) == 0
    checkpoint = torch.load(tmp_path / "run/checkpoint.pth", weights_only=True)
    assert {int(state["step"]) for state in checkpoint["optimizer"]["state"].values()} == {6}
    rates = [line["train_lr"] for line in log_of(tmp_path / "run")]  # means over six batches
    assert rates == pytest.approx([1e-4 * (1 / 3 + 2 / 3 + 1) / 3, 1e-5])


def test_a_training_ends_early_without_a_better_ap(call, tmp_path, monkeypatch, capsys):
    values = iter([0.1, 0.3, 0.2, 0.3, 0.9])
    monkeypatch.setattr("trainer.summarize", lambda *arguments: dataclasses.replace(
        summarize(*arguments), stats=(next(values, 0.0),) * 12))
    out = tmp_path / "run"
    assert call("--output_dir", out, options=["epochs=5", "epoch_steps=1", "early_stop=2"]) == 0
    assert [line[AP][0] for line in log_of(out)] == [0.1, 0.3, 0.2, 0.3]
    assert torch.load(out / "checkpoint_best.pth", weights_only=True)["epoch"] == 1
    assert "early stop" in capsys.readouterr().out
    assert call("--output_dir", out, "--resume", "auto", options=["epochs=5", "epoch_steps=1", "early_stop=2"]) == 0
    assert len(log_of(out)) == 4  # it has ended


def test_a_training_ends_with_a_summary_of_the_best_checkpoint(call, tmp_path):
    out = tmp_path / "run"
    assert call("--output_dir", out, options=["epochs=2", "use_ema=True"], summary=True) == 0
    best = max(line[AP][0] for line in log_of(out))
    summary = (out / "summary.md").read_text()
    assert "checkpoint_best.pth" in summary and f"{100 * best:.1f}" in summary
    weights = checksum(read_checkpoint(out / "checkpoint_best.pth"), ema=True)
    numbers = read_numbers(out / "summary.json", weights)
    assert numbers.stats["AP"] == pytest.approx(best) and numbers.evaluation["precision"] == "float32"
    assert {"curves.png", "precision_recall.png", "confusion_matrix.png", "errors.png"} <= set(os.listdir(out))
    assert all(line["step_seconds"] > 0 and line["peak_memory_mb"] > 50 for line in log_of(out))


def test_batches_are_split_until_they_fit(call, tmp_path, monkeypatch, capsys):
    asked = []

    def find(model, criterion, batch, device, amp_dtype, most):
        asked.append((most, batch(2)[0].tensors.shape))
        return 3

    monkeypatch.setattr("trainer.find_batch_size", find)
    options = ["epochs=1", "batch_size=4"]
    assert call("--output_dir", tmp_path / "run", "--find_batch_size", options=options) == 0
    assert asked[0][0] == 4 and asked[0][1][:2] == (2, 3)
    config = load_config(tmp_path / "run/config.py")
    assert (config.batch_size, config.grad_accum_steps) == (2, 2)
    assert "batch_size=2 grad_accum_steps=2" in capsys.readouterr().out


def test_the_batch_that_fits_is_found_on_this_machine(call, tmp_path):
    options = ["epochs=1", "epoch_steps=1", "batch_size=2"]
    assert call("--output_dir", tmp_path / "run", "--find_batch_size", options=options) == 0
    assert load_config(tmp_path / "run/config.py").batch_size == 2


@pytest.mark.slow
def test_a_compiled_model_trains_like_the_plain_one(call, tmp_path):
    # A smaller model than the others, whose maps have two rows at least: the compiler is slow.
    options = ["epochs=1", "epoch_steps=1", "return_interm_indices=[1]",
               "num_feature_levels=2", "enc_layers=1", "dec_layers=1"]
    for name, flags in (("plain", []), ("compiled", ["--compile", "aot_eager"])):  # no C++ compiler: minutes less
        assert call("--output_dir", tmp_path / name, *flags, options=options) == 0
    (plain,), (compiled,) = (losses_of(tmp_path / name) for name in ("plain", "compiled"))
    assert compiled["train_loss"] == pytest.approx(plain["train_loss"], rel=1e-4)
    assert compiled["test_loss"] == pytest.approx(plain["test_loss"], rel=1e-3)


def test_fine_tuning_keeps_the_classes_that_both_sets_have(call, trained_auto, tmp_path, coco_root, capsys):
    data = tmp_path / "data"
    shutil.copytree(coco_root, data)
    for path in data.glob("annotations/*.json"):
        content = json.loads(path.read_text())
        content["categories"] = [c | {"name": "coin"} if c["name"] == "disc" else c for c in content["categories"]]
        path.write_text(json.dumps(content))
    assert call("--output_dir", tmp_path / "tuned", "--pretrain_model_path", trained_auto / "checkpoint.pth", data=data,
                options=[*AUTO, "epochs=1"]) == 0
    output = capsys.readouterr().out
    assert "fresh: coin" in output and "ring, square" in output


@pytest.mark.parametrize("flags, message", [
    (["--benchmark_only"], "needs --benchmark"),
    (["--eval", "--test", "--resume", "x"], "exclude"),
    (["--save_results"], "needs --eval"),
    (["--save_log"], "needs --eval"),
    (["--eval", "--resume", "a.pth", "--find_batch_size"], "--find_batch_size"),
    (["--summary"], "needs --eval"),
    (["--test", "--resume", "a.pth", "--summary"], "needs --eval"),
    (["--finetune_ignore", "label_enc"], "needs --pretrain_model_path"),
    (["--eval"], "--resume"),
    (["--start_epoch", "3", "--resume", "auto"], "--start_epoch"),
    (["--eval", "--resume", "auto"], "--resume auto"),
    (["--pretrain_model_path", "a.pth", "--resume", "b.pth"], "choose"),
    (["--eval", "--resume", "a.pth", "--note", "x"], "--note"),
    (["--eval", "--resume", "a.pth", "--compile"], "--compile"),
    (["--test", "--resume", "a.pth", "--per_class"], "--per_class"),
    (["--rank", "1"], "--world_size"),
    (["--world_size", "2"], "--dist_url"),
    (["--world_size", "2", "--rank", "2", "--dist_url", "tcp://localhost:1"], "from 0 to 1"),
    (["--eval", "--resume", "nowhere.pth"], "nowhere.pth"),
    (["--device", "cuda:7"], "CUDA|GPU"),
])
def test_flags_that_would_do_nothing_are_refused(call, tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        call("--output_dir", tmp_path / "run", *flags)


@pytest.mark.parametrize("options, message", [
    (["num_querys=3"], "num_queries"),
    (["backbone=resnet51"], "resnet50"),
    (["num_classes=3", "dn_labelbook_size=3"], "num_classes"),
    (["num_expansion=4"], "num_expansion"),
    (["batch_size=two"], "batch_size"),
    (["pre_norm=True"], "pre_norm"),
])
def test_bad_config_values_name_the_key(call, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        call("--output_dir", tmp_path / "run", options=options)
    assert not (tmp_path / "run").exists()


def test_unknown_flag_suggests_the_nearest(call, capsys):
    with pytest.raises(SystemExit):
        call("--out_dir", "x")
    assert "'--output_dir'" in capsys.readouterr().err


def test_missing_data_folder_and_unwritable_output(call, tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        call("--output_dir", tmp_path / "run", data=tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="output folder"):
        call("--output_dir", tmp_path / "file" / "run")


def test_a_full_disk_is_reported_before_the_first_step(call, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=10**6))
    with pytest.raises(UserError, match="1 MB left"):
        call("--output_dir", tmp_path / "run")


def test_checkpoint_of_another_architecture(call, trained, tmp_path):
    with pytest.raises(UserError, match="does not fit"):
        call("--eval", "--resume", trained / "checkpoint.pth", "--output_dir", tmp_path / "eval",
             options=["hidden_dim=48"])


def test_a_released_checkpoint_cannot_be_resumed_as_a_training(call, trained, tmp_path):
    weights = torch.load(trained / "checkpoint.pth", weights_only=True)["model"]
    torch.save({"model": weights, "epoch": 11}, tmp_path / "released.pth")
    with pytest.raises(UserError, match="--pretrain_model_path"):
        call("--resume", tmp_path / "released.pth", "--output_dir", tmp_path / "again")


def test_benchmark_needs_no_data(call, capsys, monkeypatch):
    monkeypatch.setattr("measure.speed.SECONDS", 0.1)
    assert call("--benchmark", "--benchmark_only", "--benchmark_size", 64, 96, data=None) == 0
    table = capsys.readouterr().out
    for row in ("64x96", "parameters (M)", "GFLOPs", "backbone", "input projection", "encoder", "query selection",
                "decoder", "heads", "eager, batch 1", "eager, batch 4", "eager, batch 8", "p50", "p95", "images/s",
                "peak memory", "float32"):
        assert row in table
    assert "compiled" not in table


def test_benchmark_of_the_compiled_detector(call, capsys, monkeypatch):
    monkeypatch.setattr("measure.speed.SECONDS", 0.0)
    assert call("--benchmark", "--benchmark_only", "--benchmark_size", 64, 96, "--compile", "eager", "--amp",
                data=None) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if ", batch " in line]
    assert [" ".join(line[:3]) for line in lines] == [
        f"{name}, batch {batch}" for name in ("eager", "compiled") for batch in (1, 4, 8)]
    for line in lines:
        fps, p50, p95 = map(float, line[3:])
        assert fps > 0 and 0 < p50 <= p95


def test_sigterm_ends_with_a_checkpoint_and_the_resumed_run_equals_one_never_stopped(call, config_file, coco_root,
                                                                                      tmp_path):
    whole, stopped, options = tmp_path / "whole", tmp_path / "stopped", ["epochs=2", "batch_size=1"]
    running = spawn("main.py", "--output_dir", stopped, "-c", config_file, "--coco_path", coco_root, "--device", "cpu",
                    "--num_workers", 1, "--options", *options)
    while not (stopped / "log.txt").exists() and running.poll() is None:
        time.sleep(0.05)  # the first epoch is done: a step of the second is in progress, or about to be
    running.send_signal(signal.SIGTERM)
    output, _ = running.communicate(timeout=120)
    assert running.returncode == 128 + signal.SIGTERM, output
    assert call("--output_dir", stopped, "--resume", "auto", "--num_workers", 1, options=options) == 0
    assert call("--output_dir", whole, "--num_workers", 1, options=options) == 0
    assert losses_of(stopped) == losses_of(whole)


@pytest.mark.slow
def test_two_nodes_train_and_evaluate_each_image_once(config_file, coco_root, tmp_path, free_port):
    first, second = (
        spawn("-m", "torch.distributed.run", "--nnodes=2", f"--node_rank={node}", "--nproc_per_node=1",
              "--master_addr=127.0.0.1", f"--master_port={free_port}", "main.py", "-c", config_file,
              "--coco_path", coco_root, "--device", "cpu", "--output_dir", tmp_path / "run", "--num_workers", 0,
              "--options", "epochs=1", "batch_size=1") for node in (0, 1))
    output, _ = first.communicate(timeout=240)
    assert first.returncode == 0, output
    assert second.wait(timeout=60) == 0
    (line,) = log_of(tmp_path / "run")
    assert len(line[AP]) == 12
    assert "COCO evaluation of 8 images" in output and output.count("COCO evaluation") == 1
    assert len(torch.load(tmp_path / "run/checkpoint.pth", weights_only=True)["rng"]) == 2


@pytest.mark.slow
def test_the_published_sdetr_command(tiny_sdetr, coco_root, tmp_path, free_port):
    """Without -c, in two processes; --options makes the model and the images small."""
    folder, published = tmp_path / "run", load_config("config/SDETR/sdetr_r50.py")
    small = {key: value for key, value in tiny_sdetr("sdetr_r50").items() if published.get(key) != value}
    run = spawn("-m", "torch.distributed.launch", "--nproc_per_node=2", f"--master_port={free_port}", "--use_env",
                "main.py", "--epochs=1", "--lr_drop", "100", "--coco_path", coco_root, "--device", "cpu",
                "--num_workers", 0, "--output_dir", folder, "--options",
                *(f"{key}={value}" for key, value in small.items() if key not in ("epochs", "lr_drop")))
    output, _ = run.communicate(timeout=240)
    assert run.returncode == 0, output
    assert "the config is config/SDETR/sdetr_r50.py" in output
    config = load_config(folder / "config.py")
    assert (config.modelname, config.epochs, config.lr_drop, config.hidden_dim) == ("sdetr", 1, 100, 32)
    assert len(log_of(folder)) == 1 and "train_cardinality_error" in log_of(folder)[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sdetr_r50", "detr_r50", "lite_sdetr_r50"])
def test_models_of_config_sdetr_train_evaluate_resume_and_benchmark(call, tiny_sdetr, tmp_path, monkeypatch, name):
    monkeypatch.setattr("measure.speed.SECONDS", 0.0)
    config, out = tmp_path / "small.py", tmp_path / "run"
    tiny_sdetr(name, lr=1e-3, lr_drop=100).dump(config)
    assert call("-c", config, "--output_dir", out, options=["epochs=1"]) == 0
    assert call("-c", config, "--output_dir", out, "--resume", "auto", "--epochs", 3) == 0
    log = log_of(out)
    assert [line["epoch"] for line in log] == [0, 1, 2]
    assert log[-1]["test_loss"] < log[0]["test_loss"]
    assert call("-c", config, "--eval", "--resume", out / "checkpoint.pth", "--output_dir", out, "--save_log",
                "--benchmark", "--benchmark_size", 64, 64) == 0
    evaluated = json.loads((out / "eval/log.txt").read_text())
    assert evaluated[AP] == log[-1][AP] and evaluated["test_loss"] == pytest.approx(log[-1]["test_loss"])


def test_options_win_over_short_forms(call, tmp_path):
    assert call("--output_dir", tmp_path / "run", "--epochs", 3, "--lr", "5e-5", options=["epochs=1"]) == 0
    config = load_config(tmp_path / "run/config.py")
    assert (config.epochs, config.lr) == (1, 5e-5)


def test_a_user_error_is_one_line_and_exit_code_2(config_file, tmp_path):
    run = spawn("main.py", "-c", config_file, "--coco_path", tmp_path / "nowhere", "--device", "cpu")
    output, _ = run.communicate(timeout=120)
    assert run.returncode == 2
    assert "Traceback" not in output and "nowhere" in output


@pytest.mark.parametrize("flags, words", [
    (["--start_epoch", "2"], "--start_epoch 2 leaves none of the 2 epochs"),
    (["--compile", "inductr"], "torch.compile has no backend 'inductr'. Did you mean 'inductor'?"),
    (["--device", "gpu"], "--device 'gpu': pass cpu, cuda or cuda:N"),
])
def test_values_that_no_run_can_have(call, flags, words, tmp_path):
    with pytest.raises(UserError) as error:
        call("--output_dir", tmp_path / "run", *flags)
    assert words in str(error.value)
