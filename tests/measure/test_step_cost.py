import copy
import os

import pytest
import torch
from torch import nn

from measure import step_cost
from measure.step_cost import (
    StepCost,
    extrapolated_batch_size,
    find_batch_size,
    largest_batch_size,
    measure_step,
    memory_levers,
    memory_limit,
    worst_batch,
)
from models import build_model
from util.errors import UserError
from util.options import parse_options

CPU = torch.device("cpu")
GB = 10**9
needs_proc = pytest.mark.skipif(not os.path.isfile("/proc/self/status"), reason="no /proc")


class Device:
    """Needs `fixed` bytes and `each` an image, and has `memory`; beyond, it raises as CUDA does."""

    def __init__(self, memory, fixed=2 * GB, each=GB):
        self.memory, self.fixed, self.each, self.tried = memory, fixed, each, []

    def peak(self, size):
        self.tried.append(size)
        need = self.fixed + size * self.each
        if need > self.memory:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return need


@pytest.mark.parametrize("fits", [0, 1, 2, 3, 5, 8, 13, 32])
@pytest.mark.parametrize("most", [1, 6, 32])
def test_the_largest_batch_that_fits_is_found(fits, most, monkeypatch):
    monkeypatch.setattr(step_cost.gc, "collect", lambda: 0)  # slow, and there is nothing to collect
    device = Device(memory=(2 + fits) * GB)
    assert largest_batch_size(device.peak, 10**12, most) == min(fits, most)
    assert len(device.tried) == len(set(device.tried)) <= 11 and max(device.tried) <= most


def test_what_the_limit_forbids_does_not_fit():
    device = Device(memory=100 * GB)
    assert largest_batch_size(device.peak, 12 * GB, 64) == 10
    assert device.tried == [1, 2, 4, 8, 16, 12, 10, 11]


def test_other_errors_pass():
    def peak(size):
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        largest_batch_size(peak, GB, 4)


@pytest.mark.parametrize("limit, wanted, tried", [(12.5, 10, [1, 2]), (3, 1, [1, 2]), (2.9, 0, [1]), (99, 64, [1, 2])])
def test_the_extrapolation_runs_the_two_smallest_batches_alone(limit, wanted, tried):
    device = Device(memory=limit * GB)
    device.memory = 10**12
    assert extrapolated_batch_size(device.peak, int(limit * GB), 64) == wanted
    assert device.tried == tried
    assert extrapolated_batch_size(device.peak, 100 * GB, 1) == 1


class WithStatistics(nn.Module):
    """A model and its criterion: BatchNorm and dropout, which change buffers and the random state."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 1, 3))
        self.weight_dict = {"loss": 1.0}

    def forward(self, inputs, targets):
        if isinstance(inputs, torch.Tensor):
            return {"loss": inputs.square().mean()}
        return self.layers(inputs.tensors)


class Sum(nn.Module):
    def __init__(self, fails=False):
        super().__init__()
        self.weight_dict, self.fails = {"loss": 1e30}, fails  # a gradient that spoils weights

    def forward(self, outputs, targets):
        if self.fails:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return {"loss": outputs.sum(), "class_error": outputs.detach().sum()}


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_changed(fails):
    model, criterion = WithStatistics().eval(), Sum(fails)
    model.layers[2].train()
    model.layers[0].weight.grad = torch.ones_like(model.layers[0].weight)
    state, grad = copy.deepcopy(model.state_dict()), model.layers[0].weight.grad.clone()
    random = torch.get_rng_state()
    batches = [worst_batch(2, (16, 16), 3, 5)]
    if fails:
        with pytest.raises(torch.cuda.OutOfMemoryError):
            measure_step(model, criterion, batches, CPU)
    else:
        assert measure_step(model, criterion, batches, CPU).seconds > 0
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(model.layers[0].weight.grad, grad) and model.layers[0].bias.grad is None
    assert not model.training and model.layers[2].training and not model.layers[1].training


@needs_proc
@pytest.mark.parametrize("amp_dtype", [None, torch.bfloat16])
def test_a_step_of_a_detector_is_measured(tiny_config, amp_dtype):
    model, criterion, _ = build_model(tiny_config)
    state = copy.deepcopy(model.state_dict())
    cost = measure_step(model, criterion, [worst_batch(n, (64, 96), 5, 7) for n in (1, 2)], CPU, amp_dtype)
    assert cost.seconds > 0
    # Weights, gradients and two moments are there at the peak.
    assert cost.peak_bytes > 3 * sum(p.nbytes for p in model.parameters())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


@needs_proc
def test_the_copy_of_the_weights_is_not_counted():
    class Large(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("large", torch.ones(20 * 2**20))  # 80 MB, and 80 MB of copy
            self.layer = nn.Linear(2, 2)

        def forward(self, samples, targets):
            return self.layer(samples.tensors.flatten()[:2])

    def peak(model):
        return measure_step(model, Sum(), [worst_batch(1, (8, 8), 1, 2)], CPU).peak_bytes

    small = Large()
    small.large = torch.ones(1)
    before = peak(small)
    assert 60e6 < peak(Large()) - before < 110e6


def test_the_worst_batch_has_the_size_and_the_boxes(tiny_config):
    samples, targets = worst_batch(3, (64, 96), 5, 7)
    assert samples.tensors.shape == (3, 3, 64, 96) and not samples.mask.any() and len(targets) == 3
    for target in targets:
        centre, side = target["boxes"].split(2, 1)
        assert target["boxes"].shape == (5, 4) and (centre - side / 2).min() > -0.2 and (side > 0).all()
        assert target["labels"].shape == (5,) and target["labels"].max() < 7


@needs_proc
def test_the_limit_is_below_the_memory_of_the_machine():
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < memory_limit(CPU) < total


def test_a_container_limits_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(step_cost, "CGROUP", tmp_path)
    assert step_cost._container_free() == float("inf")
    for name, text in {"max": "1000\n", "current": "700\n", "stat": "a 1\ninactive_file 50\n"}.items():
        (tmp_path / f"memory.{name}").write_text(text)
    assert step_cost._container_free() == 350
    (tmp_path / "memory.max").write_text("max\n")
    assert step_cost._container_free() == float("inf")


def test_a_batch_size_is_found(monkeypatch):
    asked = []

    def measured(model, criterion, batches, device, amp_dtype):
        asked.append(batches)
        return StepCost(1.0, 2 * GB + batches[0] * GB)

    monkeypatch.setattr(step_cost, "measure_step", measured)
    monkeypatch.setattr(step_cost, "memory_limit", lambda device: 9 * GB)
    assert find_batch_size(None, None, lambda size: size, CPU, None, 64) == 7
    assert asked == [[1], [2]]
    assert find_batch_size(None, None, lambda size: size, torch.device("cuda"), None, 64) == 7
    monkeypatch.setattr(step_cost, "memory_limit", lambda device: GB)
    with pytest.raises(UserError, match="not even one image fits into the 0.9 GiB"):
        find_batch_size(None, None, lambda size: size, CPU, None, 64)
    monkeypatch.setattr(step_cost, "world_size", lambda: 2)
    with pytest.raises(UserError, match="single process"):
        find_batch_size(None, None, lambda size: size, CPU, None, 64)


def test_levers_are_those_not_pulled_yet(tiny_config):
    text = "\n".join(memory_levers(parse_options(tiny_config)))
    for word in ("--amp", " use_checkpoint", "deformable_use_checkpoint", "batch_size=1", "image_size"):
        assert word in text
    pulled = tiny_config | {"use_checkpoint": True, "deformable_use_checkpoint": True, "batch_size": 1}
    assert len(memory_levers(parse_options(pulled), amp=True)) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu(tiny_config):
    device = torch.device("cuda", torch.cuda.current_device())
    model, criterion, _ = build_model(tiny_config)
    model.to(device)
    criterion.to(device)
    random = torch.cuda.get_rng_state(device)
    state = copy.deepcopy(model.state_dict())
    size = find_batch_size(model, criterion, lambda n: worst_batch(n, (64, 96), 5, 7), device, None, 5)
    assert size == 5
    assert torch.equal(torch.cuda.get_rng_state(device), random)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    free = torch.cuda.memory_allocated(device)
    assert largest_batch_size(lambda n: torch.empty(2**50, device=device), 2**60, 4) == 0
    assert torch.cuda.memory_allocated(device) == free
