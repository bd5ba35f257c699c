import json
from pathlib import Path

import pytest
import torch

from models import build_model
from util.config import load_config
from util.optim import build_ema, build_optimizer, build_scheduler, param_groups
from util.options import OptimOptions

RECORDED = json.loads((Path(__file__).parents[1] / "golden/param_groups.json").read_text())["groups"]


@pytest.fixture(scope="module")
def lite_dino():
    with torch.device("meta"):
        return build_model(load_config("config/LiteDINO/r50_h3l1_2p1x3.py", {"pretrained_backbone": False}))[0]


@pytest.mark.parametrize("form", sorted(RECORDED))
def test_groups_of_lite_dino_r50_are_the_published_ones(lite_dino, form):
    groups = param_groups(lite_dino, OptimOptions(param_dict_type=form))
    found = [{"count": len(g["params"]), "numel": sum(p.numel() for p in g["params"]), "lr": g["lr"],
              "weight_decay": g["weight_decay"]} for g in groups]
    for ours, published in zip(found, RECORDED[form], strict=True):
        assert ours == pytest.approx(published)


@pytest.mark.parametrize("form", sorted(RECORDED))
def test_every_trainable_parameter_is_in_one_group(lite_dino, form):
    grouped = [id(p) for g in param_groups(lite_dino, OptimOptions(param_dict_type=form)) for p in g["params"]]
    assert sorted(grouped) == sorted(id(p) for p in lite_dino.parameters() if p.requires_grad)


def rates(options, steps, steps_per_epoch=10):
    optimizer = build_optimizer(torch.nn.Linear(2, 2), options)
    scheduler = build_scheduler(optimizer, options, steps_per_epoch)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_step_schedule_drops_once():
    assert rates(OptimOptions(lr=1.0, lr_drop=2), 4) == pytest.approx([1, 1, 0.1, 0.1])


def test_multi_step_schedule_drops_at_each_milestone():
    options = OptimOptions(lr=1.0, multi_step_lr=True, lr_drop_list=[1, 3])
    assert rates(options, 4) == pytest.approx([1, 0.1, 0.1, 0.01])


def test_one_cycle_schedule_rises_to_lr_and_ends_near_zero():
    found = rates(OptimOptions(lr=1.0, onecyclelr=True, epochs=2), 20)
    assert max(found) == pytest.approx(1.0, rel=0.05) and found[0] < 0.1 and found[-1] < 1e-3


def test_ema_averages_weights_and_copies_buffers():
    model = torch.nn.BatchNorm1d(1)
    ema = build_ema(model, 0.9)
    ema.update_parameters(model)  # the first update copies
    with torch.no_grad():
        model.running_mean.fill_(1.0), model.weight.fill_(3.0)
    ema.update_parameters(model)
    assert float(ema.module.running_mean) == pytest.approx(1.0)
    assert float(ema.module.weight.detach()) == pytest.approx(0.9 * 1 + 0.1 * 3)
