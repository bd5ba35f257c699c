import pytest
import torch
from torch.amp import GradScaler

from util.errors import UserError
from util.optim import MovingAverage, advance_scheduler
from util.train_state import TrainState


def state(ema=False, dim=2):
    torch.manual_seed(0)
    model = torch.nn.Linear(dim, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.1 ** (step // 2))
    average = MovingAverage(model, 0.5) if ema else None
    return TrainState(model, optimizer, scheduler, GradScaler("cpu", enabled=False), average)


def train(s, steps):
    for _ in range(steps):
        s.optimizer.zero_grad()
        s.model(torch.rand(4, 2)).square().sum().backward()
        s.optimizer.step()
        s.scheduler.step()
        if s.ema is not None:
            s.ema.update_parameters(s.model)


def test_a_restored_state_goes_on_exactly(tmp_path):
    first = state(ema=True)
    train(first, 3)
    first.epoch, first.step, first.best_ap, first.stale_evaluations = 4, 7, 0.25, 3
    first.meters.update({"loss": 2.0})
    torch.save(first.state_dict(), tmp_path / "s.pth")
    train(first, 3)
    second = state(ema=True)
    second.load_state_dict(torch.load(tmp_path / "s.pth", weights_only=True), "s.pth")
    advance_scheduler(second.scheduler, 3)
    assert (second.epoch, second.step, second.best_ap, second.stale_evaluations) == (4, 7, 0.25, 3)
    assert second.meters.means() == {"loss": 2.0}
    train(second, 3)
    for ours, theirs in ((first.model, second.model), (first.ema.module, second.ema.module)):
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters()))
    assert first.scheduler.get_last_lr() == second.scheduler.get_last_lr()


def test_a_moving_average_goes_on_with_its_warm_up():
    first, second = state(ema=True), state(ema=True)
    first.ema.warmup_steps = second.ema.warmup_steps = 5
    train(first, 3)
    second.load_state_dict(first.state_dict(), "x")
    advance_scheduler(second.scheduler, 3)
    torch.manual_seed(1)
    train(first, 2)
    torch.manual_seed(1)
    train(second, 2)
    assert torch.equal(first.ema.module.weight, second.ema.module.weight)
    assert not torch.equal(first.ema.module.weight, first.model.weight)


def test_a_moving_average_can_start_at_a_resume():
    first, second = state(), state(ema=True)
    train(first, 2)
    second.load_state_dict(first.state_dict(), "x")
    assert torch.equal(second.ema.module.weight, first.model.weight)


def test_an_average_that_has_not_begun_is_not_saved():
    assert "ema_model" not in state(ema=True).state_dict()


def test_with_other_processes_the_same_images_are_done():
    first, second = state(), state()
    first.step, first.images_per_step = 10, 8
    second.images_per_step = 4
    second.load_state_dict(first.state_dict(), "x")
    assert second.step == 20


def test_weights_alone_are_not_a_training():
    with pytest.raises(UserError, match="released.pth.*--pretrain_model_path"):
        state().load_state_dict({"model": state().model.state_dict(), "epoch": 3}, "released.pth")


def test_other_parameter_groups_are_an_error():
    first, second = state(), state()
    second.optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))]})
    with pytest.raises(UserError, match="param_dict_type"):
        second.load_state_dict(first.state_dict(), "x.pth")


def test_fewer_processes_than_now_means_fresh_random_numbers(monkeypatch, caplog):
    saved = state().state_dict()
    monkeypatch.setattr("util.train_state.rank", lambda: 1)
    state().load_state_dict(saved, "x.pth")
    assert "fresh random numbers" in caplog.text
