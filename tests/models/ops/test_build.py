"""Building the compiled operators, and the check that follows."""
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

from models.ops.native import BUILD_COMMAND

OPS = Path(__file__).resolve().parents[3] / "models/ops"


def check(**environment):
    """As the README has it: in the folder of the operators."""
    return subprocess.run([sys.executable, "test.py"], cwd=OPS, capture_output=True, text=True, timeout=300,
                          env=os.environ | {"OMP_NUM_THREADS": "1"} | environment)


def test_the_check_after_the_build_passes():
    done = check()
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(lines) >= 45 and all(line.startswith("* True ") for line in lines)
    for what in ("key is value", "own keys", "ms_deform_attn", "float64", "float32", "bfloat16", "float16",
                 "D=71 agrees with PyTorch", "D=30 gradient agrees with differences"):
        assert any(what in line for line in lines), what


def test_the_check_without_a_build_says_how_to_build(tmp_path):
    (tmp_path / "lite_detr_ops.py").write_text("raise ImportError('hidden')")
    done = check(PYTHONPATH=str(tmp_path))
    assert done.returncode == 1 and BUILD_COMMAND in done.stdout and "True" not in done.stdout


@pytest.mark.parametrize("cuda", ["13.2", None])
def test_cuda_that_is_asked_for_needs_a_toolkit(cuda, monkeypatch):
    """No nvcc anywhere, with a torch for CUDA and with one for the CPU."""
    monkeypatch.setenv("FORCE_CUDA", "1")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", None)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(Path, "exists", lambda path: False)
    with pytest.raises(SystemExit, match="FORCE_CUDA=1 needs nvcc with its headers and a torch that was built with"):
        runpy.run_path(str(OPS / "setup.py"))
