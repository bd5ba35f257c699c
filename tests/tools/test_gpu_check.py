import json
import os
import subprocess
import sys

import pytest
import torch


def check(*arguments, python=sys.executable):
    return subprocess.run(["tools/gpu_check.sh", *map(str, arguments)], capture_output=True, text=True, timeout=300,
                          env=os.environ | {"PYTHON": str(python), "OMP_NUM_THREADS": "1"})


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine could run the check")
def test_without_a_gpu_it_says_so(tmp_path):
    done = check(tmp_path / "out")
    assert done.returncode == 2
    assert "sees no CUDA device" in done.stderr and "--cpu" in done.stderr
    assert "missing packages: " in done.stdout and torch.__version__ in done.stdout
    assert not (tmp_path / "out/report.md").exists()


@pytest.mark.parametrize("arguments", [(), ("--cpu",), ("out", "--fast"), ("out", "--cpu", "more")])
def test_a_wrong_command_line_is_explained(arguments, tmp_path, monkeypatch):
    done = check(*(tmp_path / "out" if argument == "out" else argument for argument in arguments))
    assert done.returncode == 2 and done.stderr.startswith("usage: ") and not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.soak
def test_rehearsal_writes_report_and_numbers(tmp_path):
    done = check(tmp_path, "--cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "check.json").read_text())
    assert results["machine"]["torch"] == torch.__version__
    assert [step["result"] for step in results["steps"]] == ["PASS"] * 4
    assert json.loads((tmp_path / "ops_float32.json").read_text())["cases"]
    assert json.loads((tmp_path / "training.json").read_text())["training"][0]["torch"]["finite"]
    assert json.loads((tmp_path / "levers_float32.json").read_text())["levers"][0]["name"] == "base"
    report = (tmp_path / "report.md").read_text()
    assert report.startswith("# GPU check: 4 steps, none failed")
    assert "- PASS operators, float32 (" in report and "| KDA " in report and "s/step" in report
    assert "| backward " in report and "```" in report
    assert "\none image of 64x64 px" in report and "\ncompiled, batch 8 " in report
    assert "tools/benchmark_ops.py" in (tmp_path / "log.txt").read_text()


def test_a_failing_step_leaves_the_others_running(tmp_path):
    python = tmp_path / "python"
    python.write_text(f"""#!/bin/sh
case "$*" in
    *benchmark_ops*) echo broken; exit 3 ;;
    *benchmark_models*|*benchmark_training*|*main.py*) echo fine; exit 0 ;;
esac
exec {sys.executable} "$@"
""")
    python.chmod(0o755)
    done = check(tmp_path / "out", "--cpu", python=python)
    assert done.returncode == 1 and "    broken" in done.stdout
    results = json.loads((tmp_path / "out/check.json").read_text())
    assert [(step["result"], step["name"]) for step in results["steps"]] == [
        ("FAIL", "operators, float32: exit code 3"), ("PASS", "training, 2 steps"),
        ("PASS", "detection, float32"), ("PASS", "training levers, float32")]
    assert (tmp_path / "out/report.md").read_text().startswith("# GPU check: 1 of 4 steps failed")
