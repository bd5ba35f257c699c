"""What the parts of tools/soak.py share: a tiny training, quick starts of main.py, and how two runs compare."""
import json
import os
import random
import runpy
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pycocotools.coco import COCO
from torch import Tensor

import reports.summary
from common import ROOT
from datasets.coco_eval import Detections, EvaluationSummary, summarize
from datasets.synthetic import generate
from util.checkpoint import read_checkpoint
from util.config import load_config
from util.options import EvaluationOptions
from util.program import run_program

# A Lite-DINO on one stage of a ResNet-18: checkpoints of 10 MB, and steps of some 0.1 s on one core.
TINY = {
    "pretrained_backbone": False, "backbone": "resnet18", "hidden_dim": 32, "nheads": 2, "dim_feedforward": 64,
    "enc_layers": 2, "num_expansion": 1, "enc_scale": 1, "num_feature_levels": 2, "return_interm_indices": [1],
    "enc_n_points": 2, "dec_layers": 2, "dec_n_points": 2, "num_queries": 20, "dn_number": 4, "num_select": 20,
    "num_classes": 7, "dn_labelbook_size": 7, "data_aug_scales": [64], "data_aug_max_size": 96, "dropout": 0.1,
    "data_aug_scales2_resize": [64], "data_aug_scales2_crop": [48, 64], "batch_size": 2, "epochs": 4, "lr_drop": 3,
    "lr": 1e-3, "lr_backbone": 1e-3, "use_ema": True, "ema_decay": 0.9, "checkpoint_steps": 2, "early_stop": 2,
    "save_checkpoint_interval": 2,
}
TIMES = ("seconds", "step_seconds", "peak_memory_mb")  # entries of a log line that no two runs share


class Workshop:
    """A folder with a tiny set and config, and main.py to run on them."""

    def __init__(self, folder: Path, train: int = 8, val: int = 7):
        self.folder, self.data, self.config = folder, folder / "data", folder / "tiny.py"
        generate(self.data, train=train, val=val, seed=1, size=64)
        load_config(ROOT / "config/DINO/DINO_4scale.py", TINY).dump(self.config)
        torch.set_num_threads(1)  # a fork has no other threads
        self.program = runpy.run_path(str(ROOT / "main.py"))

    def arguments(self, out: Path, *flags: Any, workers: int = 0, options: Sequence[str] = ()) -> list[str]:
        """main.py's, for a training in the folder `out` that continues where the last one ended."""
        return ["-c", str(self.config), "--coco_path", str(self.data), "--device", "cpu", "--num_workers", str(workers),
                "--output_dir", str(out), "--resume", "auto", *map(str, flags),
                *(["--options", *options] if options else [])]

    def log(self, out: Path) -> Path:
        """What the runs in `out` print; not beside it, because its disk may be full."""
        return self.folder / f"{out.parent.name}_{out.name}.output"

    def start(self, out: Path, *flags: Any, fault: Callable[[], None] | None = None, **settings: Any) -> "Run":
        """Starts main.py in a fork of this process, in a process group of its own. `fault` is called in it first."""
        arguments, log = self.arguments(out, *flags, **settings), self.log(out)
        sys.stdout.flush()
        process = os.fork()
        if process == 0:
            self._be_main(arguments, log, fault)
        return Run(process, log)

    def run(self, out: Path, *flags: Any, **settings: Any) -> "Run":
        """Runs it to its end."""
        run = self.start(out, *flags, **settings)
        run.wait()
        return run

    def _be_main(self, arguments: list[str], log: Path, fault: Callable[[], None] | None) -> None:
        code: Any = 1
        try:
            os.setsid()
            sys.stdout = sys.stderr = log.open("a", encoding="utf-8", buffering=1)
            for number in (1, 2):
                os.dup2(sys.stdout.fileno(), number)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            reports.summary.write_summary = empty_summary  # type: ignore[assignment]
            sys.modules["trainer"].summarize = scored  # type: ignore[attr-defined]
            if fault is not None:
                fault()
            run_program(self.program["main"], self.program["parse_args"](arguments))
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code if isinstance(code, int) else 1)


class Run:
    """A started main.py, and what it printed."""

    def __init__(self, process: int, log: Path):
        self.process, self.log = process, log
        self.code: int | None = None

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        if self.code is None:
            process, status = os.waitpid(self.process, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if process else None
        return self.code

    def wait(self, timeout: float = 600) -> int:
        """The exit code. Raises TimeoutError, after killing it, if it does not end."""
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                self.kill(group=True)
                raise TimeoutError(f"main.py did not end within {timeout:.0f} s: see {self.log}")
            time.sleep(0.01)
        assert self.code is not None
        return self.code

    def kill(self, group: bool) -> None:
        try:
            (os.killpg if group else os.kill)(self.process, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def children(self) -> list[int]:
        """Its data-loading processes."""
        path = Path(f"/proc/{self.process}/task/{self.process}/children")
        try:
            return [int(word) for word in path.read_text(encoding="utf-8").split()]
        except OSError:
            return []

    @property
    def output(self) -> str:
        """Of all runs in the same folder so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""


def empty_summary(folder: Path, *_: Any) -> str:
    """In place of one with pictures, which take most of the time."""
    (folder / "summary.md").touch()
    return ""


def scored(truth: COCO, detections: Detections, options: EvaluationOptions) -> EvaluationSummary:
    """An evaluation whose AP is the mean score: that of so small a training is 0 in every epoch, and none is better."""
    scores = [row["score"] for rows in detections.values() for row in rows]
    return replace(summarize(truth, detections, options), stats=(sum(scores) / len(scores),) * 12)


def die_at_write(number: int, group: bool) -> Callable[[], None]:
    """A fault: the process is killed where it would give its write of this number (from 0) its name."""
    def fault() -> None:
        rename, count = os.replace, 0

        def dying(source: Any, target: Any) -> None:
            nonlocal count
            if count == number:
                (os.killpg if group else os.kill)(os.getpid(), signal.SIGKILL)
            count += 1
            rename(source, target)

        os.replace = dying  # type: ignore[assignment]

    return fault


def differences(ours: Path, wanted: Path) -> list[str]:
    """What of the run in one folder is not as in the other: files, tensors and counters of checkpoints, log lines."""
    found = []
    names = [sorted(p.name for p in folder.iterdir() if p.name not in ("info.txt", "tensorboard"))
             for folder in (ours, wanted)]
    if names[0] != names[1]:
        found.append(f"files: {names[0]}, not {names[1]}")
    for name in (name for name in names[1] if name.endswith(".pth") and name in names[0]):
        a, b = (read_checkpoint(folder / name) for folder in (ours, wanted))
        found += [f"{name}: {key}" for key in sorted(a.keys() | b.keys())
                  if key not in ("log", "meters", "seconds") and not equal(a.get(key), b.get(key))]
    logs = [[{key: value for key, value in json.loads(line).items() if key not in TIMES}
             for line in (folder / "log.txt").read_text().splitlines()] for folder in (ours, wanted)]
    if logs[0] != logs[1]:
        found.append(f"log.txt: epochs {[line['epoch'] for line in logs[0]]}, not {[line['epoch'] for line in logs[1]]}"
                     if len(logs[0]) != len(logs[1]) else "log.txt: other values")
    return found


def equal(a: Any, b: Any) -> bool:
    """Whether two checkpoints' entries are the same to the last bit."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


@dataclass
class Soak:
    """A part of tools/soak.py at work: its folder, its random numbers, its time, and the faults it found."""

    name: str
    workshop: Workshop
    random: random.Random
    end: float  # by time.monotonic()
    kills: int = 200
    faults: int = 0

    def __post_init__(self) -> None:
        self.folder = self.workshop.folder / self.name
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        self.start, self.run = self.workshop.start, self.workshop.run

    def time_left(self) -> bool:
        return time.monotonic() < self.end

    def say(self, text: str) -> None:
        print(f"{self.name}: {text}", flush=True)

    def fault(self, text: str) -> None:
        self.faults += 1
        self.say(f"FAULT {text}")

    def check(self, right: bool, run: Run | None, text: str) -> None:
        if not right:
            self.fault(text + (f"; the output is {run.log}:\n{run.output[-1500:]}" if run else ""))

    def expect(self, run: Run, code: int) -> None:
        self.check(run.code == code, run, f"exit code {run.code}, not {code}")

    def remove(self, out: Path) -> None:
        """A run's folder and output, unless there was a fault to look at."""
        if not self.faults:
            shutil.rmtree(out, ignore_errors=True)
            self.workshop.log(out).unlink(missing_ok=True)
