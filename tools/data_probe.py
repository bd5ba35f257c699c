"""One start of tools/benchmark_data.py, in a process of its own: python tools/data_probe.py CODE DATA CACHE START

Imports what main.py imports, from the project's folder CODE, opens the train set of DATA and takes its first sample;
then a forked process, as a data-loading one, takes the boxes of every image. Prints what that took as JSON. START: the
time at which the program was started.
"""
import importlib
import json
import os
import sys
import time
from pathlib import Path


def field(file: str, name: str) -> float:
    """A field of a file in /proc/self, in MB."""
    lines = Path("/proc/self", file).read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 2**10 for line in lines if line.startswith(f"{name}:"))


def measure_start(code: str, data: str, cache: str, started: float) -> dict[str, float]:
    sys.path.insert(0, code)
    importlib.import_module("main")  # what it takes is part of the start
    from datasets.coco import CocoDetection
    from datasets.transforms import train_transforms
    from util.distributed import init_distributed
    from util.options import DataOptions

    found = {"imports_seconds": time.time() - started, "before_mb": field("status", "VmRSS")}
    init_distributed("cpu", 1, 0, 0, "env://")
    try:
        from datasets.data import DetectionData
    except ImportError:  # an earlier version
        dataset = CocoDetection(data, "train", train_transforms(DataOptions()))
    else:
        dataset = CocoDetection(DetectionData(data, cache_folder=Path(cache)), "train", train_transforms(DataOptions()))
    dataset[0]
    found |= {"seconds": time.time() - started, "peak_mb": field("status", "VmHWM"),
              "kept_mb": field("status", "VmRSS"), "kept_own_mb": field("smaps_rollup", "Private_Dirty")}
    return found | {"worker_mb": in_fork(lambda: touch(dataset))}


def touch(dataset) -> float:
    """MB that a process takes to look at the boxes of every image."""
    before = field("smaps_rollup", "Private_Dirty")
    boxes = dataset.boxes if callable(dataset.boxes) else lambda index: dict(dataset.boxes[dataset.ids[index]])
    for index in range(len(dataset)):
        sum(value.numel() for value in boxes(index).values())
    return field("smaps_rollup", "Private_Dirty") - before


def in_fork(call) -> float:
    """What call() returns in a forked process."""
    receiving, sending = os.pipe()
    if os.fork() == 0:
        os.write(sending, repr(call()).encode())
        os._exit(0)
    os.close(sending)
    with os.fdopen(receiving) as pipe:
        return float(pipe.read())


if __name__ == "__main__":
    project, place, kept, begun = sys.argv[1:]
    found = measure_start(project, place, kept, float(begun))
    print(json.dumps({name: round(value, 2) for name, value in found.items()}))
