import pytest
import torch

from util.devices import usable_device
from util.errors import UserError


def test_the_cpu():
    assert usable_device("cpu") == usable_device("cpu:1") == usable_device(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize("name", ["0", "gpu", "mps", "xpu", "meta", "", "cuda:-1", "cuda:x", "0,1", 3.5])
def test_other_words(name):
    with pytest.raises(UserError, match="--device .*pass cpu, cuda or cuda:N"):
        usable_device(name)


def test_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert usable_device("cuda") == torch.device("cuda") and usable_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(UserError, match="--device cuda:2: this machine has 2 GPUs, cuda:0 to cuda:1"):
        usable_device("cuda:2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="--device cuda: torch sees no CUDA device; use --device cpu"):
        usable_device("cuda")
