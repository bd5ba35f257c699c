"""The clamped logit."""
import math

import pytest
import torch

from util.box_ops import inverse_sigmoid


def test_it_inverts_the_sigmoid():
    x = torch.linspace(-6, 6, 25, dtype=torch.float64)
    torch.testing.assert_close(inverse_sigmoid(x.sigmoid()), x)


@pytest.mark.parametrize("eps", [1e-3, 1e-5])
def test_ends_and_beyond_are_finite(eps):
    y = inverse_sigmoid(torch.tensor([-5.0, 0.0, 1.0, 5.0], dtype=torch.float64), eps)
    torch.testing.assert_close(y, y.new_tensor([-1, -1, 1, 1]) * -math.log(eps))


def test_eps_defaults_to_that_of_dino():
    assert inverse_sigmoid(torch.tensor(0.0)).item() == pytest.approx(math.log(1e-3))


def test_gradients_are_finite_everywhere():
    x = torch.tensor([0.0, 1e-4, 0.5, 1 - 1e-4, 1.0, 2.0], requires_grad=True)
    inverse_sigmoid(x).sum().backward()
    assert x.grad.isfinite().all() and x.grad[2].item() == pytest.approx(4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtype_and_input_stay(dtype):
    x = torch.tensor([[0.2, 1.5]], dtype=dtype)
    before = x.clone()
    y = inverse_sigmoid(x)
    assert y.dtype == dtype and y.shape == x.shape and torch.equal(x, before)
