"""What follows from sizes alone is computed once, and never wrong."""
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from models import remembered as module
from models.remembered import Memory, remembered

CPU = {"device": torch.device("cpu"), "dtype": torch.float32}


@pytest.fixture
def memory(monkeypatch):
    memory = Memory(most=3)
    monkeypatch.setattr(module, "MEMORY", memory)
    return memory


@pytest.fixture
def counted(memory):
    """A remembered function, and the sizes for which it was computed."""
    made = []

    @remembered
    def function(size, *, device, dtype):
        made.append(size)
        return torch.arange(size, device=device, dtype=dtype)

    return function, made


def test_a_result_is_computed_once(counted, memory):
    function, made = counted
    assert function(4, **CPU) is function(4, **CPU) and made == [4] and len(memory) == 1
    assert torch.equal(function(4, **CPU), torch.arange(4.0))


def test_what_was_used_last_is_kept(counted, memory):
    function, made = counted
    for size in (1, 2, 3, 1, 4, 1, 3, 2):  # 4 takes the place of 2
        function(size, **CPU)
    assert made == [1, 2, 3, 4, 2] and len(memory) == 3


@pytest.mark.parametrize("change", [{"device": torch.device("meta")}, {"dtype": torch.float64}])
def test_another_device_or_dtype_forgets_what_was_before(counted, memory, change):
    function, made = counted
    function(4, **CPU)
    function(5, **CPU)
    other = function(4, **CPU | change)
    assert (other.device, other.dtype) == tuple((CPU | change).values()) and len(memory) == 1
    function(5, **CPU)
    assert made == [4, 5, 4, 5]


def test_results_of_inference_are_good_for_training(counted):
    """A tensor of the inference mode cannot be saved for a backward pass."""
    function, _ = counted
    with torch.inference_mode():
        function(3, **CPU)
    weight = torch.ones(3, requires_grad=True)
    (weight * function(3, **CPU)).sum().backward()
    assert weight.grad.tolist() == [0, 1, 2] and not function(3, **CPU).requires_grad


def test_tensors_without_numbers_are_not_kept(counted, memory):
    function, _ = counted
    with FakeTensorMode():
        function(3, **CPU)
    assert not memory
    assert function(3, **CPU).tolist() == [0, 1, 2]


def test_a_graph_computes_it(counted, memory):
    function, made = counted

    class Model(torch.nn.Module):
        def forward(self, x):
            return x + function(x.shape[0], **CPU)

    side = {0: torch.export.Dim.DYNAMIC}
    program = torch.export.export(Model(), (torch.zeros(5),), dynamic_shapes=(side,), strict=False)
    assert not memory
    assert program.module()(torch.zeros(7)).tolist() == list(range(7))
    made.clear()
    compiled = torch.compile(Model(), backend="eager", fullgraph=True)
    assert compiled(torch.zeros(6)).tolist() == list(range(6)) and not memory
