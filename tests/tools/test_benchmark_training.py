import json

import pytest

from tools.benchmark_training import CONFIG, LEVERS, Recipe, choose_levers, main, measure_levers, parse_args
from tools.training_parts import PARTS
from util.errors import UserError
from util.options import parse_options

TINY = {"backbone": "resnet18", "hidden_dim": 32, "nheads": 2, "dim_feedforward": 64, "enc_layers": 3, "dec_layers": 1,
        "num_queries": 20, "dn_number": 4, "num_select": 20, "data_aug_scales": [64], "data_aug_max_size": 96,
        "data_aug_scales2_resize": [64], "data_aug_scales2_crop": [48, 64]}


def recipe(**changes):
    return Recipe(CONFIG, TINY, (64, 96), 2, threads=1).changed(**{"operator": "torch"} | changes)


def test_measures_levers_and_parts(tmp_path, capsys):
    options = [f"{key}={value}".replace(" ", "") for key, value in TINY.items()]
    main(parse_args(["--device", "cpu", "--impl", "torch", "--size", "64", "96", "--batch", "2", "--steps", "2",
                     "--threads", "1", "--num_workers", "1", "--levers", "half_batches",
                     "--json", str(tmp_path / "training.json"), "--options", *options]))
    result = json.loads((tmp_path / "training.json").read_text())
    assert result["batch"] == 2 and result["steps"] == 2
    base, half, *_ = result["levers"]
    assert base["name"] == "base" and half["name"] == "half_batches"
    assert half["s_per_step"] * half["images_per_s"] == pytest.approx(2)
    again = next(record for record in result["levers"] if record["name"] == "base again")
    fastest = min(base["s_per_step"], again["s_per_step"])
    assert half["time_ratio"] == pytest.approx(half["s_per_step"] / fastest) and base["time_ratio"] >= 1
    parts = result["parts"]
    assert list(parts["ms"]) == [*PARTS, "rest"] and all(ms > 0 for ms in parts["ms"].values())
    assert parts["calls"].keys() == parts["ms"].keys()
    assert parts["calls"]["backward"] > parts["calls"]["matching"] > 0 < parts["calls"]["forward: encoder"]
    assert parts["worker_ms"] > 0 and parts["ms"]["backward"] > parts["ms"]["gradient clipping"]
    text = capsys.readouterr().out
    assert "| half_batches |" in text and "| backward " in text


def test_faster_levers_are_combined(monkeypatch):
    seconds = {"float32": 10.0, "bfloat16": 4.0}
    measured = []

    def measure_step(one, steps):
        measured.append(one)
        time_ = seconds[one.dtype] - (not one.channels_last) + len(one.options) - len(TINY)
        return {"s_per_step": time_, "images_per_s": 2 / time_, "mb": None}

    monkeypatch.setattr("tools.benchmark_training.isolated_on_cpu", lambda device, function, *args: measure_step(*args))
    records = measure_levers(recipe(), ["bf16", "both_checkpoints", "contiguous"], steps=1)
    assert [record["name"] for record in records] == ["base", "bf16", "both_checkpoints", "contiguous", "base again",
                                                      "combined"]
    assert records[-1]["change"] == "bf16 + contiguous" and records[-1]["time_ratio"] == pytest.approx(0.3)
    assert measured[-1] == recipe(dtype="bfloat16", channels_last=False)
    assert [record["name"] for record in measure_levers(recipe(), ["bf16"], steps=1)] == ["base", "bf16", "base again"]


@pytest.mark.parametrize("name", LEVERS)
def test_a_lever_changes_the_recipe(name):
    base = Recipe(CONFIG, TINY)
    changed = base.changed(**LEVERS[name][1])
    assert changed != base and changed.options.items() >= base.options.items()
    parse_options(changed.config())


def test_levers_that_change_nothing_are_left_out_or_refused():
    assert choose_levers(None, Recipe(CONFIG, batch=2), True) == list(LEVERS)
    base = Recipe(CONFIG, operator="torch", dtype="bfloat16", batch=1)
    assert not {"torch", "bf16", "half_batches", "compile"} & set(choose_levers(None, base, False))
    assert choose_levers(["compile", "unfused"], base, False) == ["compile", "unfused"]  # who names it wants it
    for name, reason in (("torch", "--impl"), ("bf16", "--dtype"), ("half_batches", "even")):
        with pytest.raises(UserError, match=f"--levers {name}: .*{reason}"):
            choose_levers([name], base, False)


def test_numbers_must_make_sense():
    with pytest.raises(UserError, match="at least 1"):
        main(parse_args(["--device", "cpu", "--impl", "torch", "--batch", "-1"]))
