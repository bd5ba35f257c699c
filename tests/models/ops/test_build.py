"""Building the compiled operators, and the check that follows."""
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import setuptools
import torch
from torch.utils import cpp_extension

from models.ops.native import BUILD_COMMAND

OPS = Path(__file__).resolve().parents[3] / "models/ops"


def check(**environment):
    """As the README has it: in the folder of the operators."""
    return subprocess.run([sys.executable, "test.py"], cwd=OPS, capture_output=True, text=True, timeout=300,
                          env=os.environ | {"OMP_NUM_THREADS": "1"} | environment)


@pytest.mark.slow
def test_the_check_after_the_build_passes():
    done = check()
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(lines) >= 45 and all(line.startswith("* True ") for line in lines)
    for what in ("key is value", "distinct key", "ms_deform_attn", "float64", "float32", "bfloat16", "float16",
                 "D=71 agrees with PyTorch", "D=30 gradient agrees with differences"):
        assert any(what in line for line in lines), what


def test_the_check_without_a_build_says_how_to_build(tmp_path):
    (tmp_path / "lite_detr_ops.py").write_text("raise ImportError('hidden')")
    done = check(PYTHONPATH=str(tmp_path))
    assert done.returncode == 1 and BUILD_COMMAND in done.stdout and "True" not in done.stdout


@pytest.fixture
def build(monkeypatch):
    """build(**environment): the extension that setup.py would build, with a torch for CUDA 13.2, no GPU and no nvcc."""
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: exists(path) and not path.is_relative_to("/usr/local/cuda"))
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", None)
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("PATH", "/bin")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "")
    extensions = []
    monkeypatch.setattr(setuptools, "setup", lambda ext_modules, **options: extensions.extend(ext_modules))

    def build(**environment):
        monkeypatch.delenv("FORCE_CUDA", raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        runpy.run_path(str(OPS / "setup.py"))
        return extensions.pop()

    return build


@pytest.fixture
def toolkit(monkeypatch, tmp_path):
    """toolkit(release): there is such an nvcc, with headers."""
    def install(release):
        for folder in ("bin", "include"):
            (tmp_path / folder).mkdir()
        (tmp_path / "include/cuda_runtime_api.h").touch()
        nvcc = tmp_path / "bin/nvcc"
        nvcc.write_text(f"""#!/bin/sh
case $1 in
    --version) echo "Cuda compilation tools, release {release}, V{release}.1" ;;
    *) echo compute_80; echo compute_90; echo compute_990 ;;
esac
""")
        nvcc.chmod(0o755)
        monkeypatch.setattr(cpp_extension, "CUDA_HOME", str(tmp_path))

    return install


def is_for_cuda(extension):
    assert any(source.endswith("bindings.cpp") for source in extension.sources)
    return any(source.endswith(".cu") for source in extension.sources)


def test_without_a_gpu_the_cpu_alone_unless_asked(build, toolkit, monkeypatch, capsys):
    toolkit("13.2")
    assert not is_for_cuda(build()) and "torch sees no GPU" in capsys.readouterr().err
    assert is_for_cuda(build(FORCE_CUDA="1")) and not capsys.readouterr().err
    assert os.environ["TORCH_CUDA_ARCH_LIST"].endswith("9.0+PTX")  # torch has never heard of 99.0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert is_for_cuda(build()) and not is_for_cuda(build(FORCE_CUDA="0"))


@pytest.mark.parametrize("release, cuda, problem", [
    (None, "13.2", "install the toolkit of CUDA 13.2"), (None, None, "this torch is built without CUDA"),
    ("12.8", "13.2", "is of CUDA 12, torch of CUDA 13.2")])
def test_what_stands_in_the_way_of_cuda_is_told(build, toolkit, monkeypatch, capsys, release, cuda, problem):
    """In a build for the CPU on a machine with a GPU; it ends one that asks for CUDA."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    if release:
        toolkit(release)
    assert not is_for_cuda(build())
    told = capsys.readouterr().err
    assert "for the CPU only" in told and problem in told
    with pytest.raises(SystemExit, match=f"FORCE_CUDA=1, but .*{problem}"):
        build(FORCE_CUDA="1")


def test_a_wrong_choice_of_devices_is_refused(build):
    with pytest.raises(SystemExit, match="FORCE_CUDA=yes must be 0 or 1"):
        build(FORCE_CUDA="yes")
