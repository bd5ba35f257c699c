import json
import math
from pathlib import Path

import pytest
import torch

from models import build_model
from util.config import load_config
from util.errors import UserError
from util.optim import MovingAverage, advance_scheduler, build_optimizer, build_scheduler, param_groups
from util.options import TrainingOptions

RECORDED = json.loads((Path(__file__).parents[1] / "golden/param_groups.json").read_text())["groups"]


@pytest.fixture(scope="module")
def lite_dino():
    with torch.device("meta"):
        return build_model(load_config("config/LiteDINO/r50_h3l1_2p1x3.py", {"pretrained_backbone": False}))[0]


@pytest.mark.parametrize("form", sorted(RECORDED))
def test_groups_of_lite_dino_r50_are_the_published_ones(lite_dino, form):
    groups = param_groups(lite_dino, TrainingOptions(param_dict_type=form))
    found = [{"count": len(g["params"]), "numel": sum(p.numel() for p in g["params"]), "lr": g["lr"],
              "weight_decay": g["weight_decay"]} for g in groups]
    for ours, published in zip(found, RECORDED[form], strict=True):
        assert ours == pytest.approx(published)


@pytest.mark.parametrize("form", sorted(RECORDED))
def test_every_trainable_parameter_is_in_one_group(lite_dino, form):
    grouped = [id(p) for g in param_groups(lite_dino, TrainingOptions(param_dict_type=form)) for p in g["params"]]
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
    assert rates(TrainingOptions(lr=1.0, lr_drop=2), 6, steps_per_epoch=2) == pytest.approx([1] * 4 + [0.1] * 2)


def test_multi_step_schedule_drops_at_each_milestone():
    options = TrainingOptions(lr=1.0, multi_step_lr=True, lr_drop_list=[1, 3])
    assert rates(options, 8, steps_per_epoch=2) == pytest.approx([1] * 2 + [0.1] * 4 + [0.01] * 2)


def test_the_rate_rises_in_the_warm_up():
    options = TrainingOptions(lr=1.0, lr_drop=3, warmup_steps=3)
    assert rates(options, 8, steps_per_epoch=2) == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 0.1, 0.1])


def test_one_cycle_peaks_after_the_warm_up():
    found = rates(TrainingOptions(lr=1.0, onecyclelr=True, epochs=2, warmup_steps=12), 20)
    assert found.index(max(found)) in (11, 12)


@pytest.mark.parametrize("schedule", [{"lr_drop": 2}, {"multi_step_lr": True, "lr_drop_list": [1, 3]},
                                      {"onecyclelr": True}, {"lr_drop": 3, "warmup_steps": 15}])
def test_a_schedule_can_start_anywhere(schedule):
    options = TrainingOptions(lr=1.0, epochs=4, **schedule)
    whole = rates(options, 40)
    for start in (0, 7, 10, 25, 39):
        optimizer = build_optimizer(torch.nn.Linear(2, 2), options)
        scheduler = build_scheduler(optimizer, options, steps_per_epoch=10)
        advance_scheduler(scheduler, start)
        found = []
        for _ in range(start, 40):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        assert found == pytest.approx(whole[start:])


def test_an_advanced_schedule_keeps_the_rate_of_the_restored_optimizer():
    saved = build_optimizer(torch.nn.Linear(2, 2), TrainingOptions(lr=1.0))
    build_scheduler(saved, TrainingOptions(lr=1.0), 1)
    options = TrainingOptions(lr=5.0, lr_drop=2)
    optimizer = build_optimizer(torch.nn.Linear(2, 2), options)
    scheduler = build_scheduler(optimizer, options, 1)
    optimizer.load_state_dict(saved.state_dict())
    advance_scheduler(scheduler, 3)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


def test_one_cycle_schedule_rises_to_lr_and_ends_near_zero():
    found = rates(TrainingOptions(lr=1.0, onecyclelr=True, epochs=2), 20)
    assert max(found) == pytest.approx(1.0, rel=0.05) and found[0] < 0.1 and found[-1] < 1e-3


@pytest.mark.parametrize("total", [1, 2, 3, 5, 10])
@pytest.mark.parametrize("warmup", [0, 1, 2])
def test_one_cycle_of_few_steps(total, warmup):
    """So that a quick trial of any config runs."""
    options = TrainingOptions(lr=1.0, onecyclelr=True, epochs=1, warmup_steps=warmup)
    if warmup >= total:
        with pytest.raises(UserError, match=f"warmup_steps={warmup} must be less than the {total} steps"):
            rates(options, total, steps_per_epoch=total)
    else:
        found = rates(options, total, steps_per_epoch=total)
        assert len(found) == total and all(0 <= rate <= 1 for rate in found)
        assert max(found) > 0.5 or total <= 2


def averaged_weight(decay, updates, warmup_steps=None):
    """The average of a weight that is 1 in the first update and 3 in all later ones."""
    model = torch.nn.BatchNorm1d(1)
    ema = MovingAverage(model, decay, warmup_steps)
    ema.update_parameters(model)  # the first update copies
    with torch.no_grad():
        model.running_mean.fill_(1.0), model.weight.fill_(3.0)
    for _ in range(updates):
        ema.update_parameters(model)
    assert float(ema.module.running_mean) == pytest.approx(1.0)
    return float(ema.module.weight.detach())


def test_ema_averages_weights_and_copies_buffers():
    assert averaged_weight(decay=0.1, updates=1) == pytest.approx(0.1 * 1 + 0.9 * 3)
    assert averaged_weight(decay=0.1, updates=2) == pytest.approx(0.01 * 1 + 0.99 * 3)


def test_ema_follows_quickly_at_first():
    assert averaged_weight(decay=0.9, updates=1) == pytest.approx(2 / 11 * 1 + 9 / 11 * 3)
    assert averaged_weight(decay=0.9, updates=2) == pytest.approx(2 / 11 * 3 / 12 * 1 + (1 - 2 / 11 * 3 / 12) * 3)
    # A constant decay of 0.9997 would leave 97 % of the first weight.
    assert averaged_weight(decay=0.9997, updates=100) == pytest.approx(3, abs=1e-4)


def test_ema_warms_up_in_closed_form():
    for updates in (1, 2, 7):
        left = math.prod(0.9 * (1 - math.exp(-n / 4)) for n in range(1, updates + 1))  # of the first one
        assert averaged_weight(0.9, updates, warmup_steps=4) == pytest.approx(left * 1 + (1 - left) * 3)
    ema = MovingAverage(torch.nn.Linear(1, 1), 0.9, warmup_steps=4)
    assert ema.decay_of(4) == pytest.approx(0.9 * 0.6321205588) and ema.decay_of(1000) == pytest.approx(0.9)
    assert MovingAverage(torch.nn.Linear(1, 1), 0.9).decay_of(4) == 5 / 14
