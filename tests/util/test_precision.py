"""Which precision and memory format a model computes in."""
import pytest
import torch
from torch import nn

from util import precision
from util.options import TrainingOptions
from util.precision import amp_dtype, at_least_float32, fastest_dtype, place

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("dtype, wanted", [(torch.float16, torch.float32), (torch.bfloat16, torch.float32),
                                           (torch.float32, torch.float32), (torch.float64, torch.float64)])
def test_half_precision_becomes_single(dtype, wanted):
    assert at_least_float32(torch.ones(2, dtype=dtype)).dtype == wanted


@pytest.mark.parametrize("amp, flag, device, half", [("flag", False, GPU, False), ("flag", True, CPU, True),
                                                     ("cuda", False, CPU, False), ("cuda", True, CPU, True),
                                                     ("cuda", False, GPU, True)])
def test_mixed_precision_where_it_is_asked_for(amp, flag, device, half):
    wanted = torch.float16 if half else None
    assert amp_dtype(TrainingOptions(amp=amp, amp_dtype="float16"), flag, device) == wanted


@pytest.mark.parametrize("capability, wanted", [((7, 5), torch.float16), ((8, 0), torch.bfloat16)])
def test_bfloat16_where_the_gpu_computes_with_it(monkeypatch, capability, wanted):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert amp_dtype(TrainingOptions(), True, GPU) == wanted
    assert amp_dtype(TrainingOptions(), True, CPU) == torch.bfloat16


@pytest.mark.parametrize("half_ms, wanted", [(4, torch.bfloat16), (7.9, torch.bfloat16), (8.1, None), (20, None)])
def test_bfloat16_where_it_is_clearly_faster(monkeypatch, caplog, half_ms, wanted):
    milliseconds = {torch.float32: 10, torch.bfloat16: half_ms}
    monkeypatch.setattr(precision, "_product_seconds", lambda device, dtype: milliseconds[dtype] / 1e3)
    with caplog.at_level("INFO"):
        assert fastest_dtype(CPU) == wanted
    assert f"10.00 ms in float32 and {half_ms:.2f} ms in bfloat16; detection in " in caplog.text


def test_the_precisions_are_measured():
    assert fastest_dtype(CPU) in (None, torch.bfloat16)
    assert 0 < precision._product_seconds(CPU, torch.float32) < 1


class Convolution(nn.Module):
    """Remembers where it was sent."""

    def __init__(self, groups):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, groups=groups)
        self.sent = ()

    def to(self, device=None, *, memory_format=None):
        self.sent += (device or memory_format,)
        return self


@pytest.mark.parametrize("groups, device, wanted", [(1, CPU, torch.channels_last), (4, CPU, torch.channels_last),
                                                    (1, GPU, torch.channels_last), (4, GPU, torch.contiguous_format)])
def test_convolutions_are_channels_last_but_for_grouped_ones_on_a_gpu(groups, device, wanted):
    model = Convolution(groups)
    assert place(model, device) is model and model.sent == (device, wanted)


def test_a_placed_model_computes_the_same():
    torch.manual_seed(0)
    model, x = nn.Conv2d(3, 8, 3), torch.randn(2, 3, 5, 5)
    expected = model(x)
    placed = place(model, CPU)
    assert placed.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(placed(x), expected)
