"""Tries for a while to break trainings, files and the operator: python tools/soak.py [PART ...] [--minutes 10]

kills      a tiny training is killed again and again, and must end as one that was never killed
disk       its disk fills at each write in turn
damage     checkpoints, safetensors and annotation files with other bytes or values: they load, or the error is clear
network    two nodes (network namespaces, needs root) whose link is cut in mid-training
processes  one process goes on as two and two as one; val sets that do not divide by them
sanitizer  the operator with random shapes and locations under AddressSanitizer (needs g++)
leaks      memory, file descriptors and threads over 2,000 steps

A fault is a line with FAULT, and the exit code 1. --keep leaves the runs in a folder.
"""
import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from common import run_tool, tool_parser
from soak_files import damage, fill_disks
from soak_machine import check_operator, cut_links, find_leaks
from soak_runs import change_processes, kill_runs
from soaking import Soak, Workshop

PARTS: dict[str, Callable[[Soak], None]] = {
    "kills": kill_runs, "disk": fill_disks, "damage": damage, "network": cut_links, "processes": change_processes,
    "sanitizer": check_operator, "leaks": find_leaks}


def main(args: argparse.Namespace) -> int:
    """Returns the exit code."""
    with tempfile.TemporaryDirectory(prefix="soak-") as temporary:
        folder = args.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        workshop, faults, start = Workshop(folder), 0, time.monotonic()
        for number, name in enumerate(args.parts or PARTS):
            left = 60 * args.minutes - (time.monotonic() - start)
            share = left / (len(args.parts or PARTS) - number)
            soak = Soak(name, workshop, random.Random(args.seed), time.monotonic() + share, args.kills)
            PARTS[name](soak)
            faults += soak.faults
    print(f"{faults} faults")
    return 1 if faults else 0


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = tool_parser(__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", choices=[*PARTS, []], help="default: all")
    parser.add_argument("--minutes", type=float, default=10, help="for all parts together; each ends what it has begun")
    parser.add_argument("--kills", type=int, default=200, help="most kills of the part kills; default: 200")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave the runs there")
    return parser.parse_args(argv)


if __name__ == "__main__":
    if sys.platform != "linux":
        sys.exit("error: tools/soak.py reads /proc and needs Linux")
    run_tool(main, parse_args())
