"""Jobs, through submitit's local executor: real processes, without a cluster."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import run_with_submitit
from util.errors import LostProcess

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


@pytest.mark.slow
def test_a_job_of_two_processes_trains(config_file, coco_root, tmp_path):
    job = start(tmp_path / "jobs", "--ngpus", 2, *training(config_file, coco_root, tmp_path / "run", 1))
    output, _ = job.communicate(timeout=240)
    assert job.returncode == 0, output + logs(tmp_path / "jobs")
    assert len(torch.load(tmp_path / "run/checkpoint.pth", weights_only=True)["rng"]) == 2


@pytest.mark.slow
def test_a_preempted_job_is_queued_again_and_goes_on(config_file, coco_root, tmp_path):
    out, jobs = tmp_path / "run", tmp_path / "jobs"
    job = start(jobs, "--ngpus", 1, *training(config_file, coco_root, out, 8))
    while not (out / "log.txt").exists() and job.poll() is None:
        time.sleep(0.05)
    task = subprocess.run(["pgrep", "-f", f"submitit.core._submit {jobs}"], capture_output=True, text=True, check=True)
    child = subprocess.run(["pgrep", "-P", task.stdout.strip()], capture_output=True, text=True, check=True)
    for process in (child, task):  # as Slurm does before it takes the node away
        os.kill(int(process.stdout), signal.SIGUSR2)
    output, _ = job.communicate(timeout=240)
    assert job.returncode == 0, output + logs(jobs)
    assert "stopped in epoch" in logs(jobs) and "resumed" in logs(jobs)
    assert [json.loads(line)["epoch"] for line in (out / "log.txt").read_text().splitlines()] == list(range(8))


@pytest.mark.slow
def test_a_training_that_fails_fails_the_job(config_file, tmp_path):
    job = start(tmp_path / "jobs", "--ngpus", 1, *training(config_file, tmp_path / "nowhere", tmp_path / "run", 1))
    output, _ = job.communicate(timeout=240)
    assert job.returncode != 0 and "exit code 2" in output and "nowhere" in logs(tmp_path / "jobs")


SLURM = """
import os, sys
sys.path.insert(0, {root!r})
import run_with_submitit
from pathlib import Path
run_with_submitit.ROOT, run_with_submitit.PATIENCE = Path({folder!r}), 1
run_with_submitit.Training([])()
"""


def slurm_task(folder, program, restarts=0):
    """The end of a task in a Slurm job whose main.py is `program`; scontrol notes what it is called with."""
    (folder / "main.py").write_text(program)
    (folder / "task.py").write_text(SLURM.format(root=str(ROOT), folder=str(folder)))
    (folder / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {folder}/called\n')
    (folder / "scontrol").chmod(0o755)
    slurm = {"SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "42", "SLURM_RESTART_COUNT": str(restarts)}
    done = subprocess.run([sys.executable, folder / "task.py"], capture_output=True, text=True, timeout=60,
                          env=os.environ | slurm | {"PATH": f"{folder}:{os.environ['PATH']}"})
    called = folder / "called"
    return done, called.read_text() if called.exists() else ""


@pytest.mark.parametrize("program", [f"raise SystemExit({LostProcess.exit_code})",
                                     "import os; os.kill(os.getpid(), 9)"], ids=["lost another", "killed"])
def test_a_job_that_lost_a_process_is_queued_again(tmp_path, program):
    done, called = slurm_task(tmp_path, program)
    assert called == "requeue 42\n" and "the job is queued again" in done.stdout


def test_a_job_that_loses_processes_for_ever_fails(tmp_path):
    done, called = slurm_task(tmp_path, f"raise SystemExit({LostProcess.exit_code})", run_with_submitit.MAX_RESTARTS)
    assert not called and f"exit code {LostProcess.exit_code}" in done.stderr


def test_jobs_on_one_node_meet_at_different_ports():
    """Also jobs whose ids have the same digits, such as those that follow one another on a busy cluster."""
    def port(job):
        return run_with_submitit.process_group(SimpleNamespace(
            job_id=str(job), global_rank=1, local_rank=1, num_tasks=2, hostnames=["node"]))["MASTER_PORT"]

    ports = [port(job) for job in range(16500, 16600)]
    assert len(set(ports)) == 100 and all(1024 < int(number) < 32768 for number in ports)
    assert port("16518_0") == port("16518_0")


def test_a_mistake_is_not_tried_again(tmp_path):
    done, called = slurm_task(tmp_path, "raise SystemExit(2)")
    assert not called and "exit code 2" in done.stderr


def test_jobs_resume_by_themselves_and_need_a_folder(capsys):
    args, arguments = run_with_submitit.parse_args(["--nodes", "2", "--", "-c", "x.py", "--output_dir", "out"])
    assert args.nodes == 2 and arguments == ["-c", "x.py", "--output_dir", "out", "--resume", "auto"]
    with pytest.raises(SystemExit):
        run_with_submitit.parse_args(["--", "-c", "x.py"])
    assert "--output_dir" in capsys.readouterr().err
