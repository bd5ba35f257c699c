import random
import subprocess
import sys

import pytest
import torch

from models.ops import native_available
from tools import soak_operator
from tools.soak_operator import call, strided


@pytest.mark.parametrize("seed", range(8))
def test_strided_tensors_have_the_same_values(seed):
    x = torch.randn(3, 4, 5)
    assert torch.equal(strided(x, random.Random(seed)), x)


def test_all_strides_are_drawn():
    draw, x = random.Random(0), torch.randn(3, 4, 5)
    assert len({strided(x, draw).stride() for _ in range(50)}) == 3  # a part of a larger tensor has the usual ones


@pytest.mark.skipif(not native_available("cpu"), reason="the operators are not built")
def test_calls(monkeypatch):
    """Both operators are called, also with empty operands, and differentiated."""
    seen = []
    for name in ("ms_deform_attn", "key_aware_deform_attn"):
        original = getattr(soak_operator, name)
        monkeypatch.setattr(soak_operator, name, lambda *operands, name=name, original=original: (
            seen.append((name, operands[0])), original(*operands))[1])
    draw = random.Random(0)
    for _ in range(100):
        call(draw)
    assert {name for name, _ in seen} == {"ms_deform_attn", "key_aware_deform_attn"} and len(seen) == 100
    assert {first.numel() > 0 for _, first in seen} == {False, True}
    assert all(first.grad is not None for _, first in seen)


@pytest.mark.skipif(not native_available("cpu"), reason="the operators are not built")
def test_program():
    done = subprocess.run([sys.executable, "tools/soak_operator.py", "1", "0.2"], capture_output=True, text=True)
    assert done.returncode == 0 and int(done.stdout.split()[0]) > 0 and done.stdout.endswith(" calls\n")
