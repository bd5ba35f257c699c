"""When kernels of oneDNN that do more than one layer may run."""
import pytest
import torch

from models.layers.onednn import fusable

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")


def test_detection_on_a_cpu_may_be_fused():
    with torch.no_grad():
        assert fusable(torch.rand(1))
        assert not fusable(torch.rand(1, dtype=torch.float64))
        assert not fusable(torch.rand(1, device="meta"))
        with torch.autocast("cpu"):
            assert not fusable(torch.rand(1))
    with torch.inference_mode():
        assert fusable(torch.rand(1))
    assert not fusable(torch.rand(1))


def test_no_graph_has_its_kernels():
    def function(x):
        return x + 1 if fusable(x) else x - 1

    with torch.no_grad():
        assert torch.compile(function, backend="eager")(torch.ones(1)).item() == 0
        assert function(torch.ones(1)).item() == 2
    torch.compiler.reset()
