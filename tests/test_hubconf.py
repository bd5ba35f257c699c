import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hubconf
from util import zoo

ROOT = Path(__file__).resolve().parents[1]


def run(code, folder):
    """Elsewhere, as a user of torch.hub would."""
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300)


def load(*arguments, **options):
    return torch.hub.load(str(ROOT), *arguments, source="local", **options)


def test_the_entry_points_are_the_names_and_predictor():
    """As torch.hub.list and torch.hub.help read them."""
    public = {name for name in dir(hubconf) if callable(getattr(hubconf, name)) and not name.startswith("_")}
    assert public == {*zoo.entries(), "predictor"}
    assert "AP 50.4" in hubconf.lite_dino_r50_h3l1_2p1x3.__doc__
    assert all(importlib.util.find_spec(name) for name in hubconf.dependencies)


def test_a_name_gives_a_model_in_evaluation_mode_with_its_weights():
    model, again = load("bccd_lite_dino"), load("bccd_lite_dino")
    assert not model.training
    with torch.no_grad():
        outputs = [m([torch.zeros(3, 64, 96)])["pred_boxes"] for m in (model, again)]
    assert outputs[0].shape == (1, 100, 4) and torch.equal(*outputs)


def test_without_weights_and_with_other_options():
    model = load("bccd_lite_dino", pretrained=False, num_queries=7)
    with torch.no_grad():
        assert model([torch.zeros(3, 64, 96)])["pred_boxes"].shape == (1, 7, 4)


@pytest.mark.slow
def test_another_program_uses_it_from_another_folder(tmp_path):
    code = (f"import torch; model = torch.hub.load({str(ROOT)!r}, 'bccd_lite_dino', source='local', trust_repo=True)\n"
            "print(len(model([torch.zeros(3, 64, 96)])['pred_logits'][0]))")
    result = run(code, tmp_path)
    assert result.stdout.split()[-1:] == ["100"], result.stderr
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets/__init__.py").touch()
    result = run(f"import datasets, sys; {code}", tmp_path)
    assert "is imported as 'datasets', which is a package of this project too" in result.stderr
