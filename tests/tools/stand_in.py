"""In place of main.py in tests of tools/compare_recipes.py: a training of two epochs whose AP is lr + seed / 100. It
writes what main.py does, as far as the tool reads it, and notes each start in starts.json.

grad_accum_steps=2: waits after the first epoch until a file "go" lies beside the folders of the recipes.
weight_decay=1: fails. weight_decay=2: its log has no AP.
"""
import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path

from util.config import Config, load_config, parse_pairs
from util.options import parse_options

parser = argparse.ArgumentParser()
parser.add_argument("-c", required=True)
parser.add_argument("--seed", type=int, required=True)
parser.add_argument("--output_dir", type=Path, required=True)
parser.add_argument("--resume", choices=["auto"], required=True)
parser.add_argument("--num_workers", choices=["0"], required=True)
parser.add_argument("--device", choices=["cpu"], required=True)
parser.add_argument("--options", nargs="+", default=[])
parser.add_argument("--data")
args = parser.parse_args()
out, checkpoint = args.output_dir, args.output_dir / "checkpoint.pth"
options = parse_options(load_config(args.c, parse_pairs(args.options)))
epoch = int(checkpoint.read_text()) if checkpoint.exists() else 0


def note(**values):
    with (out.parents[1] / "starts.json").open("a") as file:
        file.write(json.dumps({"run": f"{out.parent.name} {args.seed}", **values}) + "\n")


def stopped(number, frame):
    checkpoint.write_text(str(epoch))
    sys.exit(128 + number)


signal.signal(signal.SIGTERM, stopped)
note(epoch=epoch, processors=sorted(os.sched_getaffinity(0)), threads=os.environ["OMP_NUM_THREADS"],
     wait=os.environ["OMP_WAIT_POLICY"])
Config(options.to_dict()).dump(out / "config.py")
(out / "run.json").write_text(json.dumps({"git": "abc"}))
print("these are the last words")
if options.training.weight_decay == 1:
    sys.exit(3)
ap = [] if options.training.weight_decay == 2 else [options.training.lr + args.seed / 100, 0.5]
while epoch < 2:
    if options.training.grad_accum_steps > 1 and epoch == 1:
        while not (out.parents[1] / "go").exists():
            time.sleep(0.01)
    with (out / "log.txt").open("a") as log:
        log.write(json.dumps({"epoch": epoch, "seconds": 2.0 + epoch, "step_seconds": 0.5, "peak_memory_mb": 100,
                              **({"test_coco_eval_bbox": ap} if ap else {})}) + "\n")
    epoch += 1
    checkpoint.write_text(str(epoch))
