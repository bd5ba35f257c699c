"""Jobs, through submitit's local executor: real processes, without a cluster."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import run_with_submitit

ROOT = Path(__file__).resolve().parents[1]


def start(jobs, *flags):
    command = [sys.executable, "run_with_submitit.py", "--cluster", "local", "--cpus_per_task", "1", "--job_dir", jobs,
               *flags]
    return subprocess.Popen([str(word) for word in command], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"})


def training(config, data, out, epochs):
    return ["--", "-c", config, "--coco_path", data, "--device", "cpu", "--num_workers", 0, "--output_dir", out,
            "--options", f"epochs={epochs}", "batch_size=1", "return_interm_indices=[1]", "num_feature_levels=2"]


def logs(jobs):
    return "\n".join(path.read_text() for path in sorted(jobs.rglob("*_log.*")))


def test_a_job_of_two_processes_trains(config_file, coco_root, tmp_path):
    job = start(tmp_path / "jobs", "--ngpus", 2, *training(config_file, coco_root, tmp_path / "run", 1))
    output, _ = job.communicate(timeout=240)
    assert job.returncode == 0, output + logs(tmp_path / "jobs")
    assert len(torch.load(tmp_path / "run/checkpoint.pth", weights_only=True)["rng"]) == 2


def test_a_preempted_job_is_queued_again_and_goes_on(config_file, coco_root, tmp_path):
    out, jobs = tmp_path / "run", tmp_path / "jobs"
    job = start(jobs, "--ngpus", 1, *training(config_file, coco_root, out, 8))
    while not (out / "log.txt").exists() and job.poll() is None:
        time.sleep(0.05)
    task = subprocess.run(["pgrep", "-f", f"submitit.core._submit {jobs}"], capture_output=True, text=True, check=True)
    os.kill(int(task.stdout), signal.SIGUSR2)  # as Slurm does before it takes the node away
    output, _ = job.communicate(timeout=240)
    assert job.returncode == 0, output + logs(jobs)
    assert "stopped in epoch" in logs(jobs) and "resumed" in logs(jobs)
    assert [json.loads(line)["epoch"] for line in (out / "log.txt").read_text().splitlines()] == list(range(8))


def test_a_training_that_fails_fails_the_job(config_file, tmp_path):
    job = start(tmp_path / "jobs", "--ngpus", 1, *training(config_file, tmp_path / "nowhere", tmp_path / "run", 1))
    output, _ = job.communicate(timeout=240)
    assert job.returncode != 0 and "exit code 2" in output and "nowhere" in logs(tmp_path / "jobs")


def test_jobs_resume_by_themselves_and_need_a_folder(capsys):
    args, arguments = run_with_submitit.parse_args(["--nodes", "2", "--", "-c", "x.py", "--output_dir", "out"])
    assert args.nodes == 2 and arguments == ["-c", "x.py", "--output_dir", "out", "--resume", "auto"]
    with pytest.raises(SystemExit):
        run_with_submitit.parse_args(["--", "-c", "x.py"])
    assert "--output_dir" in capsys.readouterr().err
