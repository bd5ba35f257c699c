"""Linear layers with the activation after them."""
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.layers.linear import KNOWN, MANY, Linear
from models.layers.onednn import fusable
from tests.models.layers.test_fused_conv import operators

SMALL, LARGE = (2, 3, 16), (2, MANY // 64, 16)


def layer(activation, dtype=torch.float32):
    torch.manual_seed(0)
    return Linear(16, 32, activation).to(dtype)


@pytest.mark.parametrize("activation", [*KNOWN, torch.tanh])
@pytest.mark.parametrize("shape", [SMALL, LARGE])
def test_it_is_a_linear_layer_and_its_activation(activation, shape):
    linear, x = layer(activation), torch.rand(shape)
    assert list(linear.state_dict()) == ["weight", "bias"] and isinstance(linear, nn.Linear)
    wanted = (activation or nn.Identity())(F.linear(x, linear.weight, linear.bias))
    torch.testing.assert_close(linear(x), wanted)
    with torch.no_grad():
        torch.testing.assert_close(linear(x), wanted)
        torch.testing.assert_close(linear(x.transpose(0, 1)), wanted.transpose(0, 1))


def test_one_kernel_for_many_rows_without_gradients():
    linear = layer(F.relu)
    with torch.no_grad():
        assert operators(linear, torch.rand(LARGE)) == (
            ["_linear_pointwise"] if fusable(torch.rand(1)) else ["addmm", "relu"])
        assert operators(linear, torch.rand(SMALL)) == ["addmm", "relu"]
    assert "_linear_pointwise" not in operators(linear, torch.rand(LARGE))
    with torch.no_grad():
        assert "_linear_pointwise" not in operators(linear.double(), torch.rand(LARGE).double())


@pytest.mark.parametrize("activation", KNOWN)
def test_bfloat16(activation):
    linear, x = layer(activation, torch.bfloat16), torch.rand(LARGE).bfloat16()
    exact = (activation or nn.Identity())(F.linear(x.float(), linear.weight.float(), linear.bias.float()))
    with torch.no_grad():
        torch.testing.assert_close(linear(x).float(), exact, rtol=2**-7, atol=2**-7)


def test_autocast_decides_its_precision():
    linear, x = layer(F.relu), torch.rand(LARGE)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert linear(x).dtype == torch.bfloat16


def test_gradients():
    linear, x = layer(F.gelu, torch.float64), torch.rand(3, 16, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(linear, x)
