import pytest
import torch
from torch import nn

from models.layers.recompute import recomputed


@pytest.mark.parametrize("training, gradient, enabled, calls", [
    (True, True, True, 2), (True, False, True, 1), (False, True, True, 1), (True, True, False, 1)])
def test_the_layer_runs_again_in_the_backward_pass_of_a_training(training, gradient, enabled, calls):
    layer, seen = nn.Linear(3, 2).train(training), []
    layer.register_forward_pre_hook(lambda *_: seen.append(1))
    x = torch.randn(4, 3)
    with torch.set_grad_enabled(gradient):
        y = recomputed(layer, x, enabled=enabled)
    assert torch.equal(y, nn.functional.linear(x, layer.weight, layer.bias))
    if gradient:
        y.sum().backward()
        torch.testing.assert_close(layer.weight.grad, x.sum(0).expand(2, 3))
    assert len(seen) == calls
