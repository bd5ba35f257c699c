"""Trainings that are killed, lose a process, meet a broken file or odd data."""
import collections
import itertools
import json
import os
import pkgutil
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image

from datasets.adapt import SIZES
from datasets.coco import CocoDetection
from datasets.loaders import eval_loader, worker_crash_as_user_error
from datasets.transforms import val_transforms
from tests.util.mutations import mutations
from util.errors import LostProcess, UserError
from util.options import DataOptions

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["return_interm_indices=[1]", "num_feature_levels=2"]  # two of the backbone's stages: checkpoints of 10 MB
OPTIONS = [*SMALL, "epochs=3", "batch_size=1", "checkpoint_steps=2", "eval_interval=3", "use_ema=True", "dropout=0.1"]

DETR_SIZES = {name: getattr(DataOptions(), name) for name in SIZES}  # what image_size puts in proportion

# main.py, which sends itself a signal at some call of a function
DRIVER = textwrap.dedent("""
    import os, signal, sys
    sys.path.insert(0, {root!r})
    import torch
    import main as program

    calls = 0

    def dies(function, at):
        def dying(*args, **kwargs):
            global calls
            calls += 1
            if calls == at:
                {last_words}
                os.kill(os.getpid(), signal.{signal})
            return function(*args, **kwargs)
        return dying

    if {condition}:
        {module}.{name} = dies({module}.{name}, {at})
    sys.exit(program.main(program.parse_args()))
""")


def driver(folder, module, name, at, last_words="pass", condition="True", signal="SIGKILL"):
    path = folder / "driver.py"
    path.write_text(DRIVER.format(root=str(ROOT), module=module, name=name, at=at, last_words=last_words,
                                  condition=condition, signal=signal))
    return path


def flags(config, data, out, *more, options=OPTIONS):
    return ["-c", str(config), "--coco_path", str(data), "--device", "cpu", "--num_workers", "0", "--output_dir",
            str(out), "--resume", "auto", *more, "--options", *options]


def start(*command, **environment):
    return subprocess.Popen([sys.executable, *map(str, command)], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"} | environment)


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]


def final(folder):
    return torch.load(folder / "checkpoint.pth", weights_only=True)


@pytest.fixture
def whole(call, tmp_path):
    """The folder of a training that nothing happened to."""
    assert call("--output_dir", tmp_path / "whole", options=OPTIONS) == 0
    return tmp_path / "whole"


STEP = ("torch.optim.AdamW", "step", "pass")
WRITE = ("torch", "save", "args[1].write(b'half of it'); args[1].flush()")


@pytest.mark.parametrize("module, name, last_words, at", [
    pytest.param(*STEP, 6, id="between checkpoints", marks=pytest.mark.slow),
    pytest.param(*STEP, 13, id="in the second epoch", marks=pytest.mark.slow),
    pytest.param(*WRITE, 3, id="in a checkpoint", marks=pytest.mark.slow)])
def test_a_killed_run_resumes_and_ends_with_the_weights_of_one_never_killed(
        call, config_file, coco_root, whole, tmp_path, module, name, last_words, at):
    out = tmp_path / "killed"
    killed = start(driver(tmp_path, module, name, at, last_words), *flags(config_file, coco_root, out))
    output, _ = killed.communicate(timeout=240)
    assert killed.returncode == -signal.SIGKILL, output
    written = final(out)  # whole
    assert written["step"] % 2 == 0 and not (out / "checkpoint_best.pth").exists()
    assert call("--output_dir", out, "--resume", "auto", options=OPTIONS) == 0
    ours, wanted = final(out), final(whole)
    for part in ("model", "ema_model"):
        assert all(torch.equal(ours[part][key], wanted[part][key]) for key in wanted[part])
    assert [line["train_loss"] for line in log_of(out)] == [line["train_loss"] for line in log_of(whole)]
    assert not list(out.glob(".*")), "what the killed run left half written is still there"


@pytest.mark.slow
def test_a_run_as_for_fine_tuning_resumes_wherever_it_was_killed(call, config_file, coco_root, tmp_path):
    """Epochs of some steps of two batches each, one cycle of the rate, a process that loads the data."""
    options = [*SMALL, "epochs=2", "epoch_steps=3", "batch_size=1", "grad_accum_steps=2", "checkpoint_steps=1",
               "onecyclelr=True", "eval_interval=2", "use_ema=True", "ema_decay=0.99", "num_classes=auto",
               "dn_labelbook_size=None", "image_size=96", *(f"{name}={list(size) if isinstance(size, tuple) else size}"
                                                          for name, size in DETR_SIZES.items())]
    at = random.SystemRandom().randint(2, 5)
    print("killed at step", at)
    out = tmp_path / "killed"
    killed = start(driver(tmp_path, *STEP[:2], at), *flags(config_file, coco_root, out, "--num_workers", 1,
                                                            options=options))
    output, _ = killed.communicate(timeout=240)
    assert killed.returncode == -signal.SIGKILL, output
    assert call("--output_dir", out, "--resume", "auto", "--num_workers", 1, options=options) == 0
    assert call("--output_dir", tmp_path / "whole", options=options) == 0
    ours, wanted = final(out), final(tmp_path / "whole")
    for part in ("model", "ema_model"):
        assert all(torch.equal(ours[part][key], wanted[part][key]) for key in wanted[part])
    assert [line["train_loss"] for line in log_of(out)] == [line["train_loss"] for line in log_of(tmp_path / "whole")]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_when_a_process_dies_the_other_ends_with_a_message(config_file, coco_root, tmp_path, workers):
    out, address = tmp_path / "run", f"file://{tmp_path}/meet"
    dying = driver(tmp_path, *STEP[:2], at=6)
    command = flags(config_file, coco_root, out, "--world_size", "2", "--dist_url", address, "--num_workers", workers)
    first = start("main.py", "--rank", 0, *command)
    second = start(dying, "--rank", 1, *command)
    second.communicate(timeout=240)
    output, _ = first.communicate(timeout=120)  # far below --dist_timeout
    assert second.returncode == -signal.SIGKILL
    assert first.returncode == LostProcess.exit_code and "lost contact with another process" in output, output
    assert final(out)["epoch"] == 0 and final(out)["step"] == 0  # one epoch of four steps was done


@pytest.mark.slow
@pytest.mark.parametrize("module, name, at", [
    ("torch.optim.AdamW", "step", 3), ("sys.modules['util.train_state'].TrainState", "state_dict", 3)],
    ids=["in a step", "at a checkpoint"])
def test_a_process_that_only_falls_silent_is_lost_after_the_timeout(
        config_file, coco_root, tmp_path, module, name, at):
    """As on a node without power, no connection is closed."""
    command = flags(config_file, coco_root, tmp_path / "run", "--world_size", "2", "--dist_url",
                    f"file://{tmp_path}/meet", "--dist_timeout", "0.2")
    first = start("main.py", "--rank", 0, *command)
    silent = start(driver(tmp_path, module, name, at, signal="SIGSTOP"), "--rank", 1, *command)
    try:
        output, _ = first.communicate(timeout=120)
        assert silent.poll() is None  # stopped, not dead
    finally:
        silent.kill()
    assert first.returncode == LostProcess.exit_code and "lost contact with another process" in output, output
    silent.communicate(timeout=30)


@pytest.mark.slow
def test_torchrun_restarts_a_training_that_lost_a_process(config_file, coco_root, tmp_path, free_port):
    out = tmp_path / "run"
    dying = driver(tmp_path, *STEP[:2], at=6, condition="os.environ['RANK'] == '1' and "
                                                        "os.environ['TORCHELASTIC_RESTART_COUNT'] == '0'")
    run = start("-m", "torch.distributed.run", "--nproc_per_node=2", "--max_restarts=1", f"--master_port={free_port}",
                dying, *flags(config_file, coco_root, out))
    output, _ = run.communicate(timeout=600)
    assert run.returncode == 0, output
    assert "resumed" in output and [line["epoch"] for line in log_of(out)] == [0, 1, 2]


@pytest.mark.parametrize("split", ["train2017", "val2017"], ids=["in training", "with --eval"])
def test_a_dead_data_loading_process_is_reported_with_its_file(call, coco_root, tmp_path, monkeypatch, split):
    arguments = ["--output_dir", tmp_path / "run"]
    if split == "val2017":
        call(*arguments, options=["epochs=1"])
        arguments = ["--eval", "--resume", tmp_path / "run/checkpoint.pth"]
    wanted = sorted((coco_root / split).iterdir())[1]
    original, parent = Image.open, os.getpid()

    def deadly(path, *args, **kwargs):
        if Path(path) == wanted and os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(path, *args, **kwargs)

    monkeypatch.setattr("datasets.images.Image.open", deadly)
    with pytest.raises(UserError, match=f"died while it was reading .*{wanted.name}"):
        call(*arguments, "--num_workers", 1)


@pytest.mark.slow
def test_a_damaged_checkpoint_resumes_or_is_refused_with_the_file_intact(call, config_file, tmp_path):
    """Damages drawn from those of the entries, and from those of all that is in them."""
    out = tmp_path / "run"
    options = [*SMALL, "epochs=1", "epoch_steps=1", "batch_size=1", "use_ema=True", "num_classes=auto"]
    assert call("--output_dir", out, options=[*options, "dn_labelbook_size=None"]) == 0
    whole, outcomes = final(out), collections.Counter()
    drawn = [*itertools.islice(mutations(whole, depth=1), 0, None, 19),
             *itertools.islice(mutations(whole), 0, None, 3559)]
    for name, content in drawn:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.save(content, out / "checkpoint.pth")
        before = (out / "checkpoint.pth").read_bytes()
        try:
            assert call("--output_dir", out, "--resume", "auto", options=[*options, "dn_labelbook_size=None"]) == 0
            outcomes["resumed"] += 1
        except UserError:
            outcomes["refused"] += 1
            assert (out / "checkpoint.pth").read_bytes() == before, name
    assert outcomes["refused"] > 10 and outcomes["resumed"] > 2


@pytest.mark.parametrize("module, name", [
    ("connection", "answer_challenge"), ("connection", "deliver_challenge"), ("reduction", "send_handle")])
def test_a_data_loading_process_that_dies_while_it_hands_over_a_batch(coco_root, monkeypatch, module, name):
    """The parent finds a broken connection: as ConnectionResetError, EOFError, RuntimeError."""
    loader = eval_loader(CocoDetection(coco_root, "val", val_transforms(DataOptions())), 1, 1)
    place, parent = f"multiprocessing.{module}", os.getpid()
    original = pkgutil.resolve_name(f"{place}.{name}")

    def deadly(*args, **kwargs):
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    monkeypatch.setattr(f"{place}.{name}", deadly)
    with pytest.raises(UserError, match="a data-loading process died while it was reading .*jpg: DataLoader worker"):
        with worker_crash_as_user_error(loader):
            list(loader)


# odd data

def changed(root, folder, **changes):
    """A copy of a set whose annotation files went through functions of their content."""
    shutil.copytree(root, folder)
    for split, change in changes.items():
        path = folder / f"annotations/instances_{split}2017.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
    return folder


def one_image(content):
    keep = content["annotations"][0]["image_id"]
    content["images"] = [image for image in content["images"] if image["id"] == keep]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] == keep]


def one_class(content):
    content["categories"] = content["categories"][:1]
    for annotation in content["annotations"]:
        annotation["category_id"] = content["categories"][0]["id"]


def many_boxes(content):
    image = content["images"][0]
    one = {"image_id": image["id"], "category_id": 1, "iscrowd": 0, "area": 40}
    content["annotations"] += [one | {"id": 10_000 + i, "bbox": [i % 40, i // 40, 8, 5]} for i in range(1000)]


def no_boxes(content):
    content["annotations"] = []


@pytest.mark.parametrize("changes", [
    {"train": one_image}, {"train": one_image, "val": one_image}, {"train": one_class, "val": one_class},
    {"train": many_boxes, "val": many_boxes}, {"train": no_boxes}, {"val": no_boxes}, {"train": no_boxes,
                                                                                       "val": no_boxes}])
def test_odd_sets_train_and_evaluate(call, coco_root, tmp_path, changes):
    data = changed(coco_root, tmp_path / "data", **changes)
    options = [*SMALL, "epochs=2", "epoch_steps=2", "num_classes=auto", "dn_labelbook_size=None"]
    assert call("--output_dir", tmp_path / "run", data=data, options=options) == 0
    lines = log_of(tmp_path / "run")
    assert len(lines) == 2 and all(line["train_loss"] > 0 for line in lines)
    assert (lines[-1]["test_coco_eval_bbox"][0] == -1) == (changes.get("val") is no_boxes)


def test_a_val_set_without_boxes_neither_ends_a_training_early_nor_makes_its_start_the_best(call, coco_root, tmp_path):
    data = changed(coco_root, tmp_path / "data", val=no_boxes)
    options = [*SMALL, "epochs=4", "epoch_steps=1", "early_stop=2", "num_classes=auto", "dn_labelbook_size=None"]
    assert call("--output_dir", tmp_path / "run", data=data, options=options) == 0
    assert len(log_of(tmp_path / "run")) == 4
    best, latest = (torch.load(tmp_path / "run" / name, weights_only=True)["model"]
                    for name in ("checkpoint_best.pth", "checkpoint.pth"))
    assert all(torch.equal(best[key], latest[key]) for key in latest)


def test_a_single_image_is_augmented_anew_in_every_pass(coco_root, tmp_path):
    from datasets.loaders import train_loader
    from datasets.transforms import train_transforms
    from util.options import DataOptions
    data = changed(coco_root, tmp_path / "data", train=one_image)
    options = DataOptions(data_aug_scales=[32, 40, 48, 56, 64], data_aug_max_size=96)
    loader = train_loader(CocoDetection(data, "train", train_transforms(options)), 1, 0, seed=0, epoch_batches=12)
    assert len(loader) == 12 and len({batch.tensors.shape for batch, _ in loader}) > 2
