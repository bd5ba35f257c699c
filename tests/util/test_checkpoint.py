"""Checkpoints as real files: whole or absent, never run, and loaded into models tensor by tensor."""
import argparse
import collections
import copy
import json
import logging
import multiprocessing
import os
import pickle
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn

from models import build_model
from tests.util.mutations import broken_files
from tests.util.states import differing, refusal, snapshot
from util import checkpoint as module
from util import zoo
from util.checkpoint import checksum, copy_checkpoint, load_weights, read_checkpoint, write_checkpoint
from util.config import load_config
from util.download import cache_name
from util.errors import UserError
from util.model_card import KEY, ModelCard
from util.options import parse_options
from util.pretrained import load_pretrained


class Runs:
    """Unpickling this makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


# writing

def test_what_is_written_reads_back(tmp_path):
    path = tmp_path / "model.pth"
    write_checkpoint({"model": {"w": torch.arange(3.0)}, "epoch": 4}, path)
    content = read_checkpoint(path)
    assert content["epoch"] == 4 and content["model"]["w"].tolist() == [0, 1, 2]
    assert path.stat().st_mode & 0o777 == 0o644
    assert [p.name for p in tmp_path.iterdir()] == ["model.pth"]


@pytest.mark.parametrize("error, raised", [(RuntimeError("no"), UserError), (OSError("no"), UserError),
                                           (KeyboardInterrupt(), KeyboardInterrupt)])
def test_an_interrupted_write_leaves_the_old_file_alone(monkeypatch, save, tmp_path, error, raised):
    path = save({"epoch": 1})

    def fail(content, file):
        file.write(b"half of it")
        raise error

    monkeypatch.setattr(module.torch, "save", fail)
    with pytest.raises(raised):
        write_checkpoint({"epoch": 2}, path)
    assert read_checkpoint(path) == {"epoch": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["model.pth"]


def test_a_place_that_takes_no_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    assert "file/model.pth" in refusal(write_checkpoint, {"epoch": 1}, tmp_path / "file" / "model.pth")


def overfill(path):
    """Exit code 7 if the limit on the size of files is an error of the right kind, and not the end of the process."""
    torch.set_num_threads(1)  # the parent's threads do not survive the fork
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        write_checkpoint({"epoch": 2, "model": torch.zeros(1_000_000)}, path)
    except UserError as error:
        os._exit(7 if path.name in str(error) else 8)


def test_a_full_disk_leaves_the_old_file_alone(save, tmp_path):
    path = save({"epoch": 1})
    process = multiprocessing.get_context("fork").Process(target=overfill, args=(path,), daemon=True)
    process.start()
    process.join(timeout=60)
    assert process.exitcode == 7
    assert read_checkpoint(path) == {"epoch": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["model.pth"]


def no_space(*paths, **kwargs):
    raise OSError("no space left on device")


@pytest.mark.parametrize("links", [True, False])
def test_a_copy_replaces_and_stays(monkeypatch, save, tmp_path, links):
    source, target = save({"epoch": 2}), save({"epoch": 1}, "other.pth")
    if not links:
        monkeypatch.setattr(os, "link", no_space)
    for _ in range(2):
        copy_checkpoint(source, target)
        assert read_checkpoint(target) == {"epoch": 2}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.pth", "other.pth"]
    write_checkpoint({"epoch": 3}, source)
    assert read_checkpoint(target) == {"epoch": 2}


@pytest.mark.parametrize("links", [True, False])
def test_an_interrupted_copy_leaves_the_old_file_alone(monkeypatch, save, tmp_path, links):
    source, target = save({"epoch": 2}), save({"epoch": 1}, "other.pth")
    if not links:
        monkeypatch.setattr(os, "link", no_space)
    monkeypatch.setattr(os, "replace", no_space)
    with pytest.raises((OSError, UserError), match="no space"):
        copy_checkpoint(source, target)
    assert read_checkpoint(target) == {"epoch": 1}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.pth", "other.pth"]


# reading

@pytest.mark.parametrize("new_format", [True, False])
def test_released_files_with_their_arguments_are_read(tmp_path, new_format):
    path = tmp_path / "released.pth"
    args = argparse.Namespace(lr=1e-4, lr_drop_list=[33, 45], backbone="resnet50", frozen_weights=None, masks=False)
    torch.save({"model": {"w": torch.ones(2)}, "args": args, "epoch": 11}, path,
               _use_new_zipfile_serialization=new_format)
    content = read_checkpoint(path)
    assert content["model"]["w"].tolist() == [1, 1] and content["args"] == args


@pytest.mark.parametrize("write", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content, 2))])
def test_files_with_code_are_refused_and_do_not_run(tmp_path, write):
    path, made = tmp_path / "evil.pth", tmp_path / "made"
    write({"model": {"w": torch.ones(2)}, "args": Runs(made)}, path)
    text = refusal(read_checkpoint, path)
    assert "evil.pth" in text and "more than tensors" in text and "weights_only" not in text
    assert not made.exists()


@pytest.mark.parametrize("name", ["released.pth", "model.safetensors"])
def test_files_behind_an_address_are_read_like_local_ones(tmp_path, monkeypatch, name):
    address, path = f"https://example.org/weights/{name}", tmp_path / cache_name(f"https://example.org/weights/{name}")
    monkeypatch.setenv("LITE_DETR_CACHE", str(tmp_path))
    if name == "released.pth":
        torch.save({"model": {"w": torch.ones(2)}, "args": argparse.Namespace(lr=1e-4)}, path)
    else:
        save_file({"w": torch.ones(2)}, path)
    assert read_checkpoint(address)["model"]["w"].tolist() == [1, 1]
    path.write_bytes(b"version 1\nhash 2\n")
    path.with_name(f"{path.name}.json").unlink()
    assert path.name in refusal(read_checkpoint, address)


def test_weights_are_read_by_their_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = read_checkpoint("bccd_lite_dino")
    assert content["class_names"] == {1: "RBC", 2: "WBC", 3: "Platelets"} == content["card"].class_names
    (tmp_path / "detr_r50").mkdir()
    monkeypatch.setattr(zoo, "weights_path", lambda entry: Path(f"{entry.name}.pth"))
    assert refusal(read_checkpoint, "detr_r50") == "no checkpoint file detr_r50.pth"  # no folder does
    torch.save({"epoch": 3}, "bccd_lite_dino")
    assert read_checkpoint("bccd_lite_dino") == {"epoch": 3}  # a file comes first
    assert "Did you mean 'bccd_lite_dino'?" in refusal(read_checkpoint, "bccd_lite_din")
    assert "no weights are called" not in refusal(read_checkpoint, "bccd_lite_din.pth")


def test_released_weights_come_with_the_config_of_their_name(tmp_path, monkeypatch):
    entry = zoo.find("lite_dino_r50_h2l2_2p1x3")
    monkeypatch.setenv("LITE_DETR_CACHE", str(tmp_path))
    torch.save({"model": {"w": torch.ones(2)}, "config": "of another program"}, tmp_path / cache_name(entry.address))
    content = read_checkpoint("lite_dino_r50_h2l2_2p1x3")
    assert content["config"]["enc_scale"] == 2 and content["model"]["w"].tolist() == [1, 1]


def test_safetensors_are_read(tmp_path):
    save_file({"w": torch.arange(4.0)}, tmp_path / "model.safetensors")
    content = read_checkpoint(tmp_path / "model.safetensors")
    assert content.keys() == {"model"} and content["model"]["w"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
def test_broken_files_are_named(tmp_path, name):
    path = tmp_path / name
    (save_file if "safe" in name else torch.save)({"w": torch.zeros(1000)}, path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"<html>404: not found</html>\n", b"version 1\nhash 2\n"):
        path.write_bytes(content)
        assert name in refusal(read_checkpoint, path)


def test_missing_files_and_folders_are_named(tmp_path):
    assert "absent.pth" in refusal(read_checkpoint, tmp_path / "absent.pth")
    assert str(tmp_path) in refusal(read_checkpoint, tmp_path)


@pytest.mark.parametrize("content", [[torch.ones(2)], torch.ones(2), 3])
def test_a_file_without_a_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "list.pth")
    assert "list.pth" in refusal(read_checkpoint, tmp_path / "list.pth")


@pytest.mark.parametrize("beside", [
    {"best": np.float64(0.3)}, {"args": argparse.Namespace(seed=np.int64(3), lr=np.float32(1e-4))},
    {"args": argparse.Namespace(output_dir=Path("x"))}, {"metrics": collections.defaultdict(list, a=1)},
    {"lr_scheduler": {"milestones": collections.Counter([3])}}, {"area": [np.arange(3), collections.deque([1])]}],
    ids=["NumPy number", "NumPy in args", "path", "defaultdict", "Counter", "array and deque"])
def test_harmless_values_beside_the_weights_are_read(tmp_path, beside):
    torch.save({"model": {"w": torch.ones(2)}, **beside}, tmp_path / "x.pth")
    content = read_checkpoint(tmp_path / "x.pth")
    assert content["model"]["w"].tolist() == [1, 1]
    (wanted,) = beside.items()
    wanted = str(wanted).replace("PosixPath", "PurePosixPath")
    for special, plain in (("defaultdict(<class 'list'>, {'a': 1})", "{'a': 1}"), ("deque([1])", "[1]")):
        wanted = wanted.replace(special, plain)
    assert str(list(content.items())[1]) == wanted


def test_the_type_that_is_not_read_is_named(tmp_path):
    torch.save({"model": nn.Linear(1, 1)}, tmp_path / "whole.pth")
    assert "torch.nn.modules.linear.Linear): save only the model's state_dict()" in refusal(
        read_checkpoint, tmp_path / "whole.pth")


def test_arrays_of_python_objects_are_not_read(tmp_path):
    torch.save({"x": np.array([Runs(tmp_path / "made")], dtype=object)}, tmp_path / "x.pth")
    assert "x.pth" in refusal(read_checkpoint, tmp_path / "x.pth") and not (tmp_path / "made").exists()


def test_entries_of_another_program_do_not_disturb(tmp_path):
    torch.save({"model": {"w": torch.ones(2)}, "config": "x.yaml", "class_names": ["cat", "dog"]}, tmp_path / "x.pth")
    assert read_checkpoint(tmp_path / "x.pth").keys() == {"model"}
    torch.save({"model": {"w": torch.ones(2)}, "config": {"output": Path("x"), 3: torch.ones(1)}}, tmp_path / "x.pth")
    assert read_checkpoint(tmp_path / "x.pth").keys() == {"model"}
    torch.save({"model": {"w": torch.ones(2)}, "config": {"modelname": "dino", "lr": 10**400}}, tmp_path / "x.pth")
    assert "x.pth: its entry 'config' must be config keys" in refusal(read_checkpoint, tmp_path / "x.pth")
    for names in ({"cat": 1}, {"0": "cat"}):
        torch.save({"model": {"w": torch.ones(2)}, "class_names": names}, tmp_path / "x.pth")
        assert "class_names" not in read_checkpoint(tmp_path / "x.pth")
    torch.save({"model": {"w": torch.ones(2)}, "class_names": {"cat": 1}, "config": {"modelname": "dino"}},
               tmp_path / "x.pth")
    assert "x.pth: its entry 'class_names' must be names" in refusal(read_checkpoint, tmp_path / "x.pth")


@pytest.mark.parametrize("names", ["[1]", "{", "3", '{"a": "b"}'])
def test_class_names_of_safetensors_must_be_names(tmp_path, names):
    save_file({"w": torch.ones(2)}, tmp_path / "x.safetensors", metadata={"class_names": names})
    assert "x.safetensors: its class_names must be a JSON object" in refusal(read_checkpoint,
                                                                             tmp_path / "x.safetensors")


CARD = {"format": 1, "config": {"modelname": "dino", "num_classes": 4, "data_aug_scales": (480, 512)},
        "class_names": {"1": "RBC", "3": "naïve"}, "thresholds": {"1": 0.4}, "measured": {"AP": 0.6},
        "measured_on": "x", "commit": "abc"}


def test_the_card_of_safetensors_is_read(tmp_path):
    save_file({"w": torch.ones(2)}, tmp_path / "x.safetensors", metadata={KEY: json.dumps(CARD), "class_names": "[1]"})
    content = read_checkpoint(tmp_path / "x.safetensors")
    assert content["class_names"] == {1: "RBC", 3: "naïve"} == content["card"].class_names
    assert content["config"] == {"modelname": "dino", "num_classes": 4, "data_aug_scales": [480, 512]}
    assert content["card"].thresholds == {1: 0.4} and content["card"].measured == {"AP": 0.6}


def test_a_card_without_class_names_gives_none(tmp_path):
    card = json.dumps(CARD | {"class_names": {}, "thresholds": {}})
    save_file({"w": torch.ones(2)}, tmp_path / "x.safetensors", metadata={KEY: card})
    assert read_checkpoint(tmp_path / "x.safetensors").keys() == {"model", "card", "config"}


@pytest.mark.parametrize("lie", [
    {"class_names": {"4": "WBC"}}, {"thresholds": {"2": 7}}, {"config": {"modelname": "dino", "num_classes": 1e400}},
    {"config": {"num_classes": 4}}, {"format": 2}, {"class_names": [1]}, {"measured": {"AP": "high"}}])
def test_a_card_that_lies_is_refused_with_the_name_of_its_file(tmp_path, lie):
    save_file({"w": torch.ones(2)}, tmp_path / "x.safetensors", metadata={KEY: json.dumps(CARD | lie)})
    assert "x.safetensors: its metadata are" in refusal(read_checkpoint, tmp_path / "x.safetensors")


def test_every_config_survives_the_json_of_a_card():
    for path in sorted(Path("config").rglob("*.py")):
        config = load_config(path)
        if "modelname" not in config:  # parts of others
            continue
        whole, partial = parse_options(config), ModelCard(dict(config, num_classes=9), {})
        for wanted, card in ((whole, ModelCard(whole.to_dict() | {"num_classes": 9}, {})), (whole, partial)):
            again = parse_options(ModelCard.from_json(json.dumps(card.to_dict()), str(path)).config)
            assert again == wanted.replaced(num_classes=9), path


def only_read_or_refused(data, path, model, count, seed):
    """How many damaged files were read, and how many refused with a UserError: nothing else happens."""
    outcomes = collections.Counter()
    for name, broken in broken_files(data, count, seed):
        path.write_bytes(broken)
        before = snapshot(model)
        try:
            load_weights(model, path)
            outcomes["read"] += 1
        except UserError as error:
            outcomes["refused"] += 1
            assert "weights_only=False" not in str(error)
            assert not differing(snapshot(model), before), name
    return outcomes


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("count", [150, pytest.param(6000, marks=[pytest.mark.slow, pytest.mark.soak])])
def test_a_file_with_changed_bytes_is_read_or_refused(tmp_path, suffix, count):
    model, path = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)), tmp_path / f"model.{suffix}"
    if suffix == "pth":
        config = {"modelname": "dino", "lr": 0.1}
        torch.save({"model": model.state_dict(), "class_names": {1: "a"}, "config": config}, path)
    else:
        save_file(model.state_dict(), path, metadata={"class_names": '{"1": "a"}'})
    outcomes = only_read_or_refused(path.read_bytes(), path, model, count, seed=count)
    assert outcomes["read"] > count / 20 and outcomes["refused"] > count / 5


# load_weights

def prefixed(state, prefix):
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize("wrap", [
    lambda s: s, lambda s: {"model": s, "epoch": 3}, lambda s: {"model": prefixed(s, "module.")},
    lambda s: prefixed(s, "module."), lambda s: {"state_dict": s, "best": 0.5}, lambda s: {"model_state_dict": s},
    lambda s: {"ema": {"module": s}, "last_epoch": 3}, lambda s: {"state_dict": prefixed(s, "model.")},
    lambda s: {"model": prefixed(s, "_orig_mod.")}, lambda s: {"model": prefixed(s, "module._orig_mod.")},
    lambda s: {key.replace("transformer.", "transformer._orig_mod."): value for key, value in s.items()},
    lambda s: {"model": {key: value.double() if value.is_floating_point() else value for key, value in s.items()}},
    lambda s: prefixed(s, "model.") | {"criterion.empty_weight": torch.ones(3)}],
    ids=["bare", "model", "DDP", "bare DDP", "state_dict", "model_state_dict", "ema.module", "Lightning", "compiled",
         "compiled DDP", "compiled part", "double", "with criterion"])
def test_weights_load_from_every_wrapping(build, save, wrap):
    source, model = build(1), build(2)
    assert differing(snapshot(model), snapshot(source))
    load_weights(model, save(wrap(source.state_dict())))
    assert not differing(snapshot(model), snapshot(source))
    fresh = build(3)
    load_weights(fresh, wrap(source.state_dict()))  # a dict instead of a file
    assert not differing(snapshot(fresh), snapshot(source))


def test_weights_load_from_safetensors(build, tmp_path):
    source, model = build(1), build(2)
    save_file(snapshot(source), tmp_path / "model.safetensors")
    load_weights(model, tmp_path / "model.safetensors")
    assert not differing(snapshot(model), snapshot(source))


def test_weights_load_from_a_ddp_model(build, save):
    source, model = build(1), build(2)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        path = save({"model": nn.parallel.DistributedDataParallel(source).state_dict()})
    finally:
        dist.destroy_process_group()
    assert all(key.startswith("module.") for key in read_checkpoint(path)["model"])
    load_weights(model, path)
    assert not differing(snapshot(model), snapshot(source))


def test_the_average_is_loaded_on_request_only(build):
    plain, average, model = build(1), build(2), build(3)
    content = {"model": plain.state_dict(), "ema_model": average.state_dict()}
    load_weights(model, content)
    assert not differing(snapshot(model), snapshot(plain))
    load_weights(model, content, ema=True)
    assert not differing(snapshot(model), snapshot(average))
    load_weights(model, content | {"ema_model": None}, ema=True)
    assert not differing(snapshot(model), snapshot(plain))


def test_a_checksum_tells_which_weights_a_model_has_loaded(build, save):
    plain, average, model = build(1), build(2), build(3)
    content = read_checkpoint(save({"model": prefixed(plain.state_dict(), "_orig_mod."), "ema": average.state_dict()}))
    for ema in (False, True):
        load_weights(model, content, ema=ema)
        assert checksum(model.state_dict()) == checksum(content, ema)
        assert checksum(content, ema) != checksum(content, not ema)
    next(model.parameters()).data.view(-1)[0] += 1e-3
    assert checksum(model.state_dict()) != checksum(content, ema=True)
    assert checksum({"a": torch.ones(2, 2)}) != checksum({"a": torch.ones(4)}) != checksum({"b": torch.ones(4)})
    assert checksum({"a": torch.ones(4, dtype=torch.int32)}) != checksum({"a": torch.ones(4)})


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_a_checksum_does_not_depend_on_the_precision_of_the_file(build, dtype):
    """Weights that were rounded to half precision are others than those before, whatever holds them."""
    source, model = build(1), build(2)
    content = {"model": {name: value.to(dtype) if value.is_floating_point() else value
                         for name, value in source.state_dict().items()}}
    load_weights(model, content)
    assert checksum(model.state_dict()) == checksum(content)
    assert (checksum(content) == checksum(source.state_dict())) == (dtype == torch.float64)


def test_an_average_of_another_program_is_loaded_on_request(build):
    plain, average, model = build(1), build(2), build(3)
    content = {"model": plain.state_dict(), "ema": {"module": average.state_dict(), "updates": 7}}
    load_weights(model, content)
    assert not differing(snapshot(model), snapshot(plain))
    load_weights(model, content, ema=True)
    assert not differing(snapshot(model), snapshot(average))


@pytest.mark.parametrize("spoil, fault", [
    (lambda value: value.fill_(torch.nan), "holds NaN or infinite numbers"),
    (lambda value: value.flatten()[:1].fill_(-torch.inf), "holds NaN or infinite numbers"),
    (lambda value: torch.full_like(value, 1e300, dtype=torch.float64), "holds NaN or infinite numbers"),
    (lambda value: value.to(torch.complex64), "is complex"), (lambda value: value.to_sparse(), "is sparse"),
    (lambda value: value.to("meta"), "is on the meta device"), (lambda value: value.long(), "is of int64")],
    ids=["NaN", "inf", "overflow", "complex", "sparse", "meta", "whole"])
@pytest.mark.parametrize("load", [load_weights, lambda model, content: load_pretrained(model, content)])
def test_weights_that_are_no_numbers_are_named_and_nothing_is_loaded(build, save, spoil, fault, load):
    model, key = build(), "transformer.encoder.layers.0.linear1.weight"
    before, state = snapshot(model), snapshot(build(1))
    spoilt = spoil(state[key])
    if spoilt.numel() == state[key].numel():
        state[key] = spoilt
    text = refusal(load, model, save({"model": state}))
    assert f"model.pth holds weights that cannot be used:\n  1 unusable:\n    {key} {fault}" in text
    assert not differing(snapshot(model), before)


def test_one_parameter_with_several_names_has_one_value(build):
    """Any of the names suffices, and values that differ are not loaded over each other."""
    source, model = build(1), build(2)
    state = snapshot(source)
    one = "class_embed.0.weight"
    for key in [key for key in state if "class_embed." in key and key.endswith("weight") and "enc_out" not in key]:
        if key != one:
            del state[key]
    load_weights(model, state)
    assert not differing(snapshot(model), snapshot(source))
    state["class_embed.1.weight"] = state[one] + 1
    assert "dec_pred_class_embed_share=False" in refusal(load_weights, model, state)
    del state["class_embed.1.weight"]
    state["transformer.decoder.class_embed.0.weight"] = state[one] + 1
    assert "different weights for" in refusal(load_weights, model, state)


def test_another_number_of_queries_is_named(build):
    assert "set num_queries=31" in refusal(load_weights, build(), build(num_queries=31).state_dict())
    assert "num_queries_one2many" in refusal(load_weights, build(), build(num_queries_one2many=11).state_dict())


def test_what_does_not_fit_is_listed_and_nothing_is_loaded(build):
    model = build()
    before, state = snapshot(model), snapshot(build(1))
    del state["transformer.level_embed"], state["label_enc.weight"]
    state |= {f"extra{i}.weight": torch.zeros(1) for i in range(11)}
    key = "transformer.encoder.layers.0.linear1.weight"
    state[key] = state[key][:5]
    text = refusal(load_weights, model, state)
    assert "2 missing" in text and "transformer.level_embed" in text and "label_enc.weight" in text
    assert "11 unexpected" in text and "extra0.weight" in text and "and 6 more" in text
    assert f"{key} (5, 32) (64, 32)" in text
    assert "num_classes" not in text
    assert not differing(snapshot(model), before)


def test_the_file_is_named(build, save):
    assert "model.pth" in refusal(load_weights, build(), save({"model": {"w": torch.ones(1)}}))


def test_another_number_of_classes_is_told_from_another_architecture(build):
    model = build()
    assert "num_classes" in refusal(load_weights, model, build(num_classes=5, dn_labelbook_size=5).state_dict())
    # All tensors differ here, those of the class heads among them, but not in their number of rows.
    assert "num_classes" not in refusal(load_weights, model, build(hidden_dim=64).state_dict())


def test_without_strict_the_rest_is_loaded_and_told(build, caplog):
    source, model = build(1), build(2)
    before, state = snapshot(model), snapshot(source)
    del state["transformer.level_embed"]
    with caplog.at_level(logging.WARNING):
        load_weights(model, state | {"extra.weight": torch.zeros(1)}, strict=False)
    assert "transformer.level_embed" in caplog.text and "extra.weight" in caplog.text
    after = snapshot(model)
    assert differing(after, snapshot(source)) == ["transformer.level_embed"]
    assert torch.equal(after["transformer.level_embed"], before["transformer.level_embed"])


def test_without_strict_another_shape_is_still_an_error(build):
    text = refusal(load_weights, build(), build(num_classes=5, dn_labelbook_size=5).state_dict(), strict=False)
    assert "class_embed.0.weight (5, 32) (7, 32)" in text


def test_tensors_that_follow_from_the_architecture_are_never_asked_for(build):
    source, model = build(1), build(2)
    extra = {"backbone.0.body.bn1.num_batches_tracked": torch.tensor(3), "backbone.0.relative_position_index":
             torch.zeros(4), "backbone.0.layers.0.attn_mask": torch.zeros(4)}
    load_weights(model, source.state_dict() | extra)
    assert not differing(snapshot(model), snapshot(source))


def test_the_unused_projection_of_published_plain_attention_is_dropped(build):
    source, model = build(1, key_aware=False), build(2, key_aware=False)
    attentions = [key.removesuffix("attention_weights.weight") for key in source.state_dict()
                  if key.endswith("attention_weights.weight")]
    assert len(attentions) == 4
    extra = {f"{prefix}query_proj.{part}": torch.zeros(32) for prefix in attentions for part in ("weight", "bias")}
    keys = {name.replace("query", "key"): value for name, value in extra.items()}  # with proj_key=True
    load_weights(model, source.state_dict() | extra | keys)
    assert not differing(snapshot(model), snapshot(source))
    # Elsewhere it is no stranger.
    text = refusal(load_weights, build(3, key_aware=True), source.state_dict() | extra)
    assert "8 unexpected" in text and "attention_weights" in text
    assert "x.query_proj.weight" in refusal(load_weights, model, source.state_dict() | {
        "x.query_proj.weight": torch.zeros(1)})


def test_published_sdetr_names_are_ours(tiny_sdetr):
    """Stage 1 is over C5, the last map; stage 2 over C4."""
    source, model = (build_model(tiny_sdetr("sdetr_r50"))[0] for _ in range(2))
    assert differing(snapshot(model), snapshot(source))
    published = {"stages.0": "mytransformer1", "stages.1": "mytransformer2", "query_embed.0": "query_embed1",
                 "query_embed.1": "query_embed2", "input_proj.1": "input_proj1", "input_proj.0": "input_proj2"}
    state = {}
    for key, value in source.state_dict().items():
        own = next((own for own in published if key.startswith(f"{own}.")), "")
        state[published.get(own, own) + key.removeprefix(own)] = value
    assert not any(key.startswith(tuple(published)) for key in state)
    load_weights(model, {"model": state})
    assert not differing(snapshot(model), snapshot(source))
    del state["mytransformer2.decoder.norm.weight"]
    assert "1 missing:\n    stages.1.decoder.norm.weight" in refusal(load_weights, model, state)


def test_a_checkpoint_without_weights_is_refused(build, save):
    assert "epoch" in refusal(load_weights, build(), save({"epoch": 3, "lr": 0.1}))


def test_loading_does_not_tie_the_model_to_the_checkpoint(build):
    state, model = snapshot(build(1)), build(2)
    load_weights(model, state)
    before = copy.deepcopy(state)
    with torch.no_grad():
        model.transformer.level_embed.add_(1)
    assert not differing(state, before)


def test_a_swin_that_lies_one_level_deeper_loads(build):
    model = build(backbone="swin_T_224_1k")
    state = {key.replace("backbone.0.", "backbone.0.body."): torch.full_like(value, 2)
             for key, value in model.state_dict().items()}
    load_weights(model, {"model": state})
    assert (model.backbone[0].patch_embed.proj.weight == 2).all()
