"""Trains on a Slurm cluster:

    python run_with_submitit.py --nodes 2 --ngpus 8 --partition NAME -- -c CONFIG --coco_path DIR --output_dir OUT

Everything after -- goes to main.py. Every GPU gets a process. When Slurm preempts the job or its time is up, the
training writes a checkpoint, and the job is queued again and continues from there; after the loss of a node or a
process it continues from the last checkpoint. `--cluster local` runs the same on this machine, without requeueing.
"""
import argparse
import os
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import submitit

from util.errors import LostProcess

ROOT = Path(__file__).resolve().parent
STOPPED = 128 + signal.SIGTERM  # main.py's exit code after a checkpoint on request
PATIENCE = 60  # s, within which Slurm ends the processes of a job that it requeues
MAX_RESTARTS = 10  # after lost processes; repeated losses have another cause


class Training:
    """What each task of the job runs: main.py in a process of its own, so that signals to it do not affect submitit."""

    def __init__(self, arguments: list[str]):
        self.arguments = arguments

    def __call__(self) -> int:
        """Returns main.py's exit code. Raises RuntimeError for a failure, which fails the job, unless Slurm ends this
        process before because it requeues the job.
        """
        task = submitit.JobEnvironment()
        environment = os.environ | (process_group(task) if task.num_tasks > 1 else {})
        self.process = subprocess.Popen([sys.executable, str(ROOT / "main.py"), *self.arguments], cwd=ROOT,
                                        env=environment, preexec_fn=ignore_warnings)
        code = self.process.wait()
        lost = code == LostProcess.exit_code or code < 0  # another process is gone, or this one was killed
        if lost and task.cluster == "slurm" and int(os.environ.get("SLURM_RESTART_COUNT", 0)) < MAX_RESTARTS:
            # Every remaining process asks for it, since any may be the last; Slurm acts on the first request.
            if subprocess.run(["scontrol", "requeue", task.job_id]).returncode == 0:
                print(f"main.py ended with exit code {code}: the job is queued again", flush=True)
            time.sleep(PATIENCE)
        if code not in (0, STOPPED):
            raise RuntimeError(f"main.py ended with exit code {code}; its output is in this log")
        return code

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """submitit calls it in the first task when the job has to stop. A stop request to one process stops all."""
        self.process.send_signal(signal.SIGTERM)
        # This runs in a signal handler, possibly within process.wait(), which is not reentrant.
        os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        return submitit.helpers.DelayedSubmission(Training(self.arguments))


def process_group(task: submitit.JobEnvironment) -> dict[str, str]:
    """The environment in which the tasks of a job find each other."""
    # Every task computes the same port. Jobs that share a node get different ones, below those that the system lends.
    port = 20000 + zlib.crc32(task.job_id.encode()) % 12000
    return {"RANK": str(task.global_rank), "WORLD_SIZE": str(task.num_tasks), "LOCAL_RANK": str(task.local_rank),
            "MASTER_ADDR": task.hostnames[0], "MASTER_PORT": str(port)}


def ignore_warnings() -> None:
    """Runs in a new process before main.py: Slurm's warning signal may reach every process of the job, but only
    submitit handles it (main.py then writes a checkpoint); it must not end the others."""
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def parse_args(argv: list[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """The job's arguments, and main.py's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--nodes", type=int, default=1)
    add("--ngpus", type=int, default=8, help="GPUs, and processes, per node")
    add("--cpus_per_task", type=int, default=8, help="CPU cores per process, for loading data")
    add("--mem_gb", type=int, default=None, help="memory per node; default: the partition's")
    add("--timeout", type=int, default=72 * 60, help="minutes until the job is requeued")
    add("--partition")
    add("--job_name", default="lite_detr")
    add("--job_dir", type=Path, default=ROOT / "outputs" / "jobs", help="for logs; on a disk that all nodes share")
    add("--cluster", choices=["slurm", "local"], default="slurm")
    add("--slurm", nargs="*", default=[], metavar="KEY=VALUE", help="further Slurm parameters, such as account=NAME")
    args, arguments = parser.parse_known_args(argv)
    arguments = [argument for argument in arguments if argument != "--"]
    if "--output_dir" not in arguments:
        parser.error("name an --output_dir on a disk that all nodes share: a requeued job finds its checkpoint there")
    if "--resume" not in arguments:
        arguments += ["--resume", "auto"]
    return args, arguments


def main() -> None:
    args, arguments = parse_args()
    executor = submitit.AutoExecutor(folder=args.job_dir, cluster=args.cluster, slurm_max_num_timeout=100)
    executor.update_parameters(
        name=args.job_name, nodes=args.nodes, tasks_per_node=args.ngpus, cpus_per_task=args.cpus_per_task,
        timeout_min=args.timeout, slurm_signal_delay_s=120,
        **({"gpus_per_node": args.ngpus} if args.cluster == "slurm" else {}),
        **({"mem_gb": args.mem_gb} if args.mem_gb else {}),
        **({"slurm_partition": args.partition} if args.partition else {}),
        slurm_additional_parameters={"requeue": True} | dict(pair.split("=", 1) for pair in args.slurm))
    job = executor.submit(Training(arguments))
    print(f"job {job.job_id}; its logs are {args.job_dir}/{job.job_id}_*_log.out and .err", flush=True)
    if args.cluster == "local":
        sys.exit(max(job.results()))


if __name__ == "__main__":
    main()
