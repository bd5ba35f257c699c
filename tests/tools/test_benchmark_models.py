import json
import subprocess
import sys

import pytest
import torch

from tools.benchmark_models import MODELS, train
from tools.measuring import Setting
from util.options import parse_options

TINY = {"backbone": "resnet18", "hidden_dim": 32, "nheads": 2, "dim_feedforward": 64, "enc_layers": 3, "dec_layers": 1,
        "num_queries": 20, "dn_number": 4, "num_select": 20}


def benchmark(*arguments):
    return subprocess.run([sys.executable, "tools/benchmark_models.py", "--device", "cpu", *map(str, arguments)],
                          capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_measures_inference_and_training(tmp_path):
    done = benchmark("--models", "config/DINO/DINO_4scale.py num_expansion=None", "--impl", "torch", "--size", 64, 96,
                     "--batch", 2, "--seconds", 0, "--rounds", 1, "--train", 2, "--train_batch", 1, "--threads", 1,
                     "--options", *(f"{key}={value}" for key, value in TINY.items()),
                     "--json", tmp_path / "models.json", "--markdown", tmp_path / "models.md")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "models.json").read_text())
    assert result["size"] == [64, 96] and result["torch"] == torch.__version__
    [inference], [training] = result["inference"], result["training"]
    assert inference["batch"] == 2 and "ratio" not in inference
    assert inference["torch"]["images_per_s"] * inference["torch"]["ms_per_image"] == pytest.approx(1000)
    assert 0 < inference["torch"]["mb_extra"] < inference["torch"]["mb"]
    assert training["torch"]["finite"] and training["torch"]["loss"] > 0 and training["torch"]["s_per_step"] > 0
    text = (tmp_path / "models.md").read_text()
    assert done.stdout.strip() == text.strip()
    assert text.count("| config/DINO/DINO_4scale.py num_expansion=None |") == 2


def test_the_default_models_are_three_lite_forms_and_dino():
    options = [parse_options(Setting(model).config()) for model in MODELS]
    assert [(o.encoder.num_expansion, o.encoder.enc_scale) for o in options[:3]] == [(3, 3), (1, 3), (3, 2)]
    assert options[3].encoder.num_expansion is None
    assert [o.transformer.key_aware for o in options] == [True, True, True, False]
    assert not any(o.backbone.pretrained_backbone for o in options)


def test_a_loss_that_is_not_finite_is_reported():
    torch.manual_seed(0)
    record = train(Setting(MODELS[0], TINY | {"lr": 1e30, "clip_max_norm": 0.0}, size=(64, 64)), "torch", 2)
    assert record["finite"] is False and record["s_per_step"] is None
    assert "gradient norm" in record["error"] or "loss" in record["error"]
