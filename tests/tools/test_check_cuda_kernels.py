import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from tools.check_cuda_kernels import Kernel, budget_of, find_problems, parse_ptxas, report

SPACE = "deform_attn::(anonymous namespace)"


def ptxas_says(name, architecture="sm_90", registers=126, stack=0, stores=0, loads=0):
    return (f"ptxas info    : Compiling entry function '{name}' for '{architecture}'\n"
            f"ptxas info    : Function properties for {name}\n"
            f"    {stack} bytes stack frame, {stores} bytes spill stores, {loads} bytes spill loads\n"
            f"ptxas info    : Used {registers} registers, used 0 barriers\n"
            "ptxas info    : Compile time = 57.288 ms\n")


FAST = (f"void {SPACE}::forward_kernel<{SPACE}::BFloat16, {SPACE}::Team<4, 1>, ({SPACE}::Weights)0>"
        f"({SPACE}::Arguments)")
ANY = f"void {SPACE}::forward_any_kernel<double, ({SPACE}::Weights)2>({SPACE}::Arguments)"


def test_parses_names_registers_and_spills():
    text = "ptxas info    : 0 bytes gmem\n" + ptxas_says(FAST) + ptxas_says(ANY, "sm_80", 80, 32, 36, 40)
    assert parse_ptxas(text) == [Kernel("sm_90", "forward_kernel<BFloat16, Team<4, 1>, KeyIsValue>", 126, 0, 0, 0),
                           Kernel("sm_80", "forward_any_kernel<double, Given>", 80, 32, 36, 40)]


def test_no_kernels_in_other_text():
    assert parse_ptxas("nvcc fatal   : Unsupported gpu architecture 'compute_10'\n") == []


def test_kernels_within_their_budget_pass():
    kernels = parse_ptxas(ptxas_says(FAST) + ptxas_says(FAST, "sm_80", 128))
    assert find_problems(kernels, budget_of(kernels)) == {}
    assert find_problems([replace(kernel, registers=kernel.registers - 1) for kernel in kernels],
                         budget_of(kernels)) == {}


def test_more_registers_spills_and_unknown_kernels_are_problems():
    known, = parse_ptxas(ptxas_says(FAST))
    budget = budget_of([known])
    larger, spilling, unknown = replace(known, registers=127), replace(known, spill_loads=4), replace(known, name="x")
    other_architecture = replace(known, architecture="sm_80")
    problems = find_problems([known, larger, spilling, unknown, other_architecture], budget)
    assert set(problems) == {larger, spilling, unknown, other_architecture}
    assert "126" in problems[larger] and "spills" in problems[spilling]
    assert problems[unknown] == problems[other_architecture] == "not in the budget"


def test_report_names_the_kernels_with_problems():
    kernels = parse_ptxas(ptxas_says(FAST) + ptxas_says(ANY, registers=90, stores=8))
    text = report(kernels, find_problems(kernels, budget_of(kernels)))
    assert "forward_any_kernel<double, Given>  spills: 8" in text and "forward_kernel<BFloat16" not in text
    assert text.endswith("sm_90: 2 kernels, at most 126 registers")


def check(tmp_path, nvcc=None):
    (tmp_path / "bin").mkdir()
    if nvcc:
        (tmp_path / "bin/nvcc").write_text(f"#!/bin/sh\n{nvcc}\n")
        (tmp_path / "bin/nvcc").chmod(0o755)
    return subprocess.run([sys.executable, "tools/check_cuda_kernels.py"], capture_output=True, text=True, timeout=120,
                          env={**os.environ, "CUDA_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"})


def test_without_nvcc_it_passes_and_says_so(tmp_path):
    done = check(tmp_path)
    assert done.returncode == 0 and "no nvcc" in done.stdout


@pytest.mark.skipif(shutil.which("c++filt") is None, reason="needs c++filt")
def test_a_spilling_kernel_fails_the_check(tmp_path):
    done = check(tmp_path, f"cat <<'END'\n{ptxas_says(ANY, stores=8)}END")
    assert done.returncode == 2 and "spills: 8" in done.stdout and "Traceback" not in done.stderr


@pytest.mark.skipif(shutil.which("c++filt") is None, reason="needs c++filt")
def test_a_budget_without_its_kernel_fails_the_check(tmp_path):
    done = check(tmp_path, f"cat <<'END'\n{ptxas_says(ANY)}END")
    assert done.returncode == 2 and "no longer exist" in done.stderr and "--record" in done.stderr


def test_what_does_not_compile_fails_the_check(tmp_path):
    done = check(tmp_path, "echo 'no such thing' >&2; exit 2")
    assert done.returncode == 2 and "no such thing" in done.stderr and "Traceback" not in done.stderr
