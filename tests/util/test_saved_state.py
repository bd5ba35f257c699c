"""A damaged training checkpoint: either it still serves, or a UserError names the entry and nothing has changed."""
import collections
import itertools

import pytest
import torch

from tests.util.mutations import mutations, odd_values
from tests.util.states import refusal, snapshot
from tests.util.test_train_state import state, train
from util.errors import UserError
from util.optim import advance_scheduler
from util.saved_state import (
    check_entries,
    described,
    is_class_names,
    is_number,
    is_plain,
    optimizer_state,
    tensor_fault,
)


@pytest.fixture
def saved():
    trained = state(ema=True)
    train(trained, 3)
    trained.meters.update({"loss": 2.0})
    trained.epoch, trained.step = 1, 2
    return trained.state_dict() | {"config": {"lr": 0.1, "lr_drop_list": [1, 2]}, "class_names": {1: "a", 2: "b"}}


@pytest.mark.parametrize("part", [5, pytest.param(1, marks=[pytest.mark.slow, pytest.mark.soak])])
def test_every_damage_of_every_entry_is_refused_or_harmless(saved, part):
    """Every fifth one, or all. Harmless: the training goes on to finite weights, and what it saves can be resumed."""
    outcomes = collections.Counter()
    for name, content in itertools.islice(mutations(saved), 0, None, part):
        resumed, numbers = state(ema=True), torch.get_rng_state()
        before = snapshot(resumed.model) | {f"ema.{k}": v for k, v in snapshot(resumed.ema.module).items()}
        try:
            resumed.load_state_dict(content, "x.pth")
        except UserError as error:
            outcomes["refused"] += 1
            top = name.replace(" ", ".").split(".")[0]
            assert "x.pth" in str(error), name
            assert top in str(error) or top in ("model", ""), (name, str(error))
            after = snapshot(resumed.model) | {f"ema.{k}": v for k, v in snapshot(resumed.ema.module).items()}
            assert all(torch.equal(before[key], after[key]) for key in before), name
            assert not resumed.optimizer.state and resumed.ema.n_averaged == 0, name
            assert (resumed.epoch, resumed.step, resumed.grad_norm) == (0, 0, 0.0), name
            assert torch.equal(numbers, torch.get_rng_state()), name
        else:
            outcomes["harmless"] += 1
            advance_scheduler(resumed.scheduler, 3)
            train(resumed, 1)
            assert all(value.isfinite().all() for value in resumed.model.state_dict().values()), name
            state(ema=True).load_state_dict(resumed.state_dict(), "y.pth")
    assert outcomes["refused"] > 1500 / part and outcomes["harmless"] > 300 / part


def test_a_gradient_norm_that_half_precision_could_not_hold_is_accepted(saved):
    """The step was left out; the checkpoint is whole."""
    trained = state(ema=True)
    trained.meters.update({"grad_norm": float("nan"), "loss": 2.0})
    trained.grad_norm = float("inf")
    written, resumed = trained.state_dict(), state(ema=True)
    resumed.load_state_dict(written, "x.pth")
    assert resumed.grad_norm == float("inf") and resumed.meters.means()["loss"] == 2.0


def test_what_is_intact_is_accepted(saved):
    check_entries(saved, "x.pth")
    check_entries({"config": {"lr": 0.1}}, "x.pth", {"config", "class_names"})


@pytest.mark.parametrize("changes, message", [
    ({"epoch": None}, "entry 'epoch' must be the number of an epoch, not None"),
    ({"step": 10**30}, "entry 'step' must be a whole number that is not negative, not a whole number of 100 bits"),
    ({"best": float("nan")}, "entry 'best' must be an AP, not nan"),
    ({"meters": {"sums": {"loss": 1.0}, "counts": {}}}, "entry 'meters' must be sums and counts by name"),
    ({"class_names": {1: "a", "2": "b"}}, "entry 'class_names' must be names by category ids"),
    ({"config": {"lr": torch.ones(2)}}, "entry 'config' must be config keys with plain values"),
    ({"rng": [{"cpu": torch.zeros(5056, dtype=torch.uint8)}]}, "entry 'rng' must be a list"),
])
def test_the_entry_and_what_it_must_be_are_named(saved, changes, message):
    assert message in refusal(check_entries, saved | changes, "x.pth")


def test_a_missing_entry_is_named(saved):
    del saved["meters"]
    assert "x.pth: its entry 'meters' is missing" in refusal(check_entries, saved, "x.pth")
    del saved["ema_updates"]
    saved["meters"] = {"sums": {}, "counts": {}}
    assert "'ema_model' and 'ema_updates' one is missing" in refusal(check_entries, saved, "x.pth")


def test_only_numbers_of_a_saved_group_are_used(saved):
    """An optimizer that computes its steps in another way goes on with the saved rates."""
    group = saved["optimizer"]["param_groups"][0]
    group |= {"lr": 0.5, "maximize": True, "amsgrad": True, "fused": "yes", "betas": [0.8, 0.9], "unknown": 3}
    optimizer = state().optimizer
    (loaded,) = optimizer_state(saved["optimizer"], optimizer, "x.pth")["param_groups"]
    assert loaded["lr"] == 0.5 and loaded["betas"] == (0.8, 0.9) and "unknown" not in loaded
    own = optimizer.state_dict()["param_groups"][0]
    assert all(loaded[name] == own[name] for name in ("maximize", "amsgrad", "fused"))


@pytest.mark.parametrize("spoil, fault", [
    (lambda s: s["state"][0].__setitem__("exp_avg", torch.zeros(3)), "state.0.exp_avg has the shape (3,) instead"),
    (lambda s: s["state"][0].__setitem__("exp_avg_sq", -torch.ones(1, 2)), "state.0.exp_avg_sq holds negative"),
    (lambda s: s["state"][1].__setitem__("exp_avg", torch.tensor([torch.inf])), "state.1.exp_avg holds NaN or inf"),
    (lambda s: s["state"][1].pop("step"), "state.1 has no 'step'"),
    (lambda s: s["state"].__setitem__(7, {}), "a state of 7, which is no parameter"),
    (lambda s: s["param_groups"][0].pop("lr"), "param_groups.0 has no 'lr'"),
    (lambda s: s["param_groups"][0].__setitem__("betas", (0.9, 1.0)), "param_groups.0.betas"),
    (lambda s: s["param_groups"][0].__setitem__("params", [0, 0]), "lists a parameter twice"),
    (lambda s: s["param_groups"][0].__setitem__("params", [0]), "param_dict_type, lr_backbone or freezing"),
])
def test_faults_of_an_optimizer_are_named(saved, spoil, fault):
    spoil(saved["optimizer"])
    assert fault in refusal(optimizer_state, saved["optimizer"], state().optimizer, "x.pth")


@pytest.mark.parametrize("kind, fault", [
    ("sparse", "is sparse"), ("nested", "is nested"), ("complex", "is complex"), ("quantised", "is quantised"),
    ("meta", "is on the meta device"), ("text", "is 'x' and no tensor"), ("float tensor", "")])
def test_faults_of_tensors(kind, fault):
    found = tensor_fault(odd_values()[kind])
    assert found.startswith(fault) and bool(found) == bool(fault)


def test_numbers_and_plain_values():
    assert is_number(0.5, 0, 1) and is_number(-torch.inf) and is_number(3)
    assert not any(map(is_number, (True, "3", torch.nan, 10**400, None)))
    assert is_plain({"a": [1, (2.0, None)], "b": {"c": "d"}})
    assert not any(map(is_plain, (torch.ones(1), {1: 2}, [b"x"], 10**400)))
    assert is_class_names({0: "a", 7: "b"})
    assert not any(map(is_class_names, ({}, ["a"], {-1: "a"}, {10**6: "a"}, {1: 2})))


def test_descriptions_are_short():
    assert described("x" * 1000) == repr("x" * 40) and described(10**5000).startswith("a whole number of 16610 bits")
    assert described(torch.ones(2)) == "a tensor of float32" and described([1]) == "a list"
