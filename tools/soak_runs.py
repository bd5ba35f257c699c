"""The parts of tools/soak.py that kill trainings and change their number of processes."""
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from soaking import Run, Soak, die_at_write, differences

KILLS_PER_RUN = 5
WORKER_DIED = 2  # main.py's exit code when a data-loading process is gone


def kill_runs(soak: Soak) -> None:
    """Main process, its group or a data-loading process, at a drawn time or a drawn write."""
    whole = soak.folder / "whole"
    start = time.monotonic()
    soak.expect(soak.run(whole, workers=1), 0)
    duration, kills, runs = time.monotonic() - start, {"main": 0, "group": 0, "worker": 0}, 0
    while sum(kills.values()) < soak.kills and soak.time_left():
        out, runs = soak.folder / f"run{runs}", runs + 1
        for _ in range(KILLS_PER_RUN):
            kind, at_write = soak.random.choice(list(kills)), soak.random.random() < 0.5
            if at_write and kind != "worker":
                run = soak.start(out, workers=1, fault=die_at_write(soak.random.randrange(20), kind == "group"))
                killed = run.wait() == -signal.SIGKILL
            else:
                run = soak.start(out, workers=1)
                killed = _kill_later(run, kind, soak.random.uniform(0, duration))
            kills[kind] += killed
            # A data-loading process may have done its work already: then the run goes on to its end.
            expected = (0, WORKER_DIED) if kind == "worker" else (0, -signal.SIGKILL)
            soak.check(run.code in expected, run, f"{kind} killed: exit code {run.code}")
            if run.code == 0:
                break
        soak.expect(soak.run(out, workers=1), 0)
        for difference in differences(out, whole):
            soak.fault(f"{out.name}: {difference}")
        soak.remove(out)
    soak.say(f"{sum(kills.values())} kills ({', '.join(f'{n} {kind}' for kind, n in kills.items())}) in {runs} runs")


def _kill_later(run: Run, kind: str, delay: float) -> bool:
    """Whether there was something to kill after `delay` seconds. Returns when the run has ended."""
    end = time.monotonic() + delay
    while run.poll() is None and time.monotonic() < end:
        time.sleep(0.005)
    if kind != "worker":
        killed = run.poll() is None
        run.kill(group=kind == "group")
        run.wait()
        return killed and run.code == -signal.SIGKILL
    while run.poll() is None and not (workers := run.children()):
        time.sleep(0.001)
    killed = False
    if run.poll() is None:
        try:
            os.kill(workers[0], signal.SIGKILL)
            killed = True
        except ProcessLookupError:
            pass
    run.wait()
    return killed


def change_processes(soak: Soak) -> None:
    """A training stops in mid-epoch and goes on with another number of processes, on 7 val images."""
    for before, after in ((1, 2), (2, 1), (2, 2)):
        out = soak.folder / f"{before}to{after}"
        _run_group(soak, out, before, meanwhile=_stop_soon)
        codes = _run_group(soak, out, after)
        soak.check(codes == [0] * after, None, f"{before} to {after} processes: exit codes {codes}")
        evaluations = [_detections(soak, out, count) for count in (1, 2)]
        soak.check(evaluations[0] == evaluations[1] and len(evaluations[0]) == 7, None,
                   "1 and 2 processes detect different things")
        soak.say(f"{before} to {after} processes: a training of {len((out / 'log.txt').read_text().splitlines())} "
                 "epochs, and the same detections on 7 images with 1 and 2 processes")


def _stop_soon(runs: list[Run], out: Path) -> None:
    """SIGTERM once a checkpoint within an epoch is there."""
    while not (out / "checkpoint.pth").exists() and all(run.poll() is None for run in runs):
        time.sleep(0.01)
    os.kill(runs[0].process, signal.SIGTERM)


def _detections(soak: Soak, out: Path, count: int) -> dict[int, list[dict]]:
    """By image, what `count` processes find with the latest checkpoint."""
    found = soak.folder / f"{out.name}_by_{count}"
    codes = _run_group(soak, found, count, "--eval", "--save_results", "--resume", out / "checkpoint.pth")
    soak.check(codes == [0] * count, None, f"--eval with {count} processes: exit codes {codes}")
    rows: dict[int, list[dict]] = {}
    for row in json.loads((found / "results/val_detections.json").read_text()):
        rows.setdefault(row["image_id"], []).append(row)
    return rows


def _run_group(soak: Soak, out: Path, count: int, *flags: str | Path,
               meanwhile: Callable[[list[Run], Path], None] | None = None) -> list[int]:
    """Exit codes of `count` processes that work together."""
    meet = soak.folder / f"meet{time.monotonic_ns()}"
    runs = [soak.start(out, *flags, *(["--world_size", count, "--rank", rank, "--dist_url", f"file://{meet}"]
                                      if count > 1 else [])) for rank in range(count)]
    if meanwhile is not None:
        meanwhile(runs, out)
    return [run.wait() for run in runs]
