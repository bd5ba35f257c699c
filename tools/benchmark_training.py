"""What a training step costs, what changes that, and where its time goes.

    python tools/benchmark_training.py
    python tools/benchmark_training.py --device cuda --dtype bfloat16 --levers torch use_checkpoint --json training.json

The base is a step with the compiled operator, channels-last convolutions and fused AdamW. Each lever changes one thing
of it; on a CPU it is measured in a process of its own. Weights and images are random, with 7 boxes per image: only
shapes matter.
"""
import argparse
import functools
import sys

import torch

from common import add_options_flag, add_size_flag, run_tool, tool_parser
from measuring import (
    DTYPES,
    IMPLEMENTATIONS,
    add_common_arguments,
    check_device,
    describe_run,
    in_fresh_process,
    isolated_on_cpu,
    summary_line,
    write_results,
)
from training_parts import measure_parts, report_parts
from training_steps import WARM_UP, Recipe, measure_step
from util.config import parse_pairs
from util.errors import UserError
from util.markdown import table, three_digits

CONFIG = "config/LiteDINO/r50_h3l1_2p1x3.py"
FASTER = 0.97  # a lever that takes less than this share of the base's time joins the combination

CHECKPOINTS = {"use_checkpoint": True, "deformable_use_checkpoint": True}
LEVERS: dict[str, tuple[str, dict]] = {  # name: what it does, fields of Recipe
    "torch": ("PyTorch's operator", {"operator": "torch"}),
    "bf16": ("mixed precision (bfloat16)", {"dtype": "bfloat16"}),
    "use_checkpoint": ("backbone recomputed in the backward pass", {"options": {"use_checkpoint": True}}),
    "deformable_use_checkpoint": ("transformer recomputed", {"options": {"deformable_use_checkpoint": True}}),
    "both_checkpoints": ("backbone and transformer recomputed", {"options": CHECKPOINTS}),
    "contiguous": ("not channels-last", {"channels_last": False}),
    "unfused": ("AdamW not fused", {"fused": False}),
    "half_batches": ("half batches, grad_accum_steps=2", {"accumulate": 2}),
    "compile": ("torch.compile (inductor)", {"compiled": True}),
}


def choose_levers(names: list[str] | None, base: Recipe, compiled: bool) -> list[str]:
    """The levers to measure, in order; unless they are named, torch.compile is one only where `compiled` asks for it.
    Raises UserError for one that would change nothing or cannot be."""
    useless = {"torch": base.operator == "torch" and "--impl torch is the base already",
               "bf16": base.dtype == "bfloat16" and "--dtype bfloat16 is the base already",
               "half_batches": base.batch % 2 and "it needs an even --batch"}
    if names is None:
        return [name for name in LEVERS if not useless.get(name) and (compiled or name != "compile")]
    for name in names:
        if useless.get(name):
            raise UserError(f"--levers {name}: {useless[name]}")
    return list(dict.fromkeys(names))


def measure_levers(base: Recipe, names: list[str], steps: int) -> list[dict]:
    """A record of the base, of each lever, and of all levers together that were faster than the base, if several were.
    Where there are levers, the base is measured again after them, to show how far two measurements of the same differ.
    """
    def measure(name: str, change: str, recipe: Recipe) -> dict:
        print(f"{name}: {change} ...", file=sys.stderr, flush=True)
        return {"name": name, "change": change} | isolated_on_cpu(base.device, measure_step, recipe, steps)

    described = f"{IMPLEMENTATIONS[base.operator]} operator, {base.dtype}, channels-last, fused AdamW"
    first = measure("base", described, base)
    levers = [measure(name, LEVERS[name][0], base.changed(**LEVERS[name][1])) for name in names]
    again = [measure("base again", described, base)] if levers else []
    seconds = min(record["s_per_step"] for record in [first, *again])
    records = [first, *levers, *again]
    faster = [record["name"] for record in levers if record["s_per_step"] < FASTER * seconds]
    if len(faster) > 1:
        together = functools.reduce(lambda recipe, name: recipe.changed(**LEVERS[name][1]), faster, base)
        records.append(measure("combined", " + ".join(faster), together))
    return [record | {"time_ratio": record["s_per_step"] / seconds,
                      "memory_ratio": record["mb"] and record["mb"] / first["mb"]} for record in records]


def report_levers(records: list[dict], steps: int) -> str:
    keys = ["s_per_step", "images_per_s", "mb", "time_ratio", "memory_ratio"]
    rows = [[record["name"], record["change"], *(three_digits(record[key]) for key in keys)] for record in records]
    columns = ["lever", "change", "s/step", "images/s", "MB", "time / base", "MB / base"]
    return (f"{table(columns, rows)}\n\nMedian of {steps} steps after {WARM_UP}; MB: total peak; base: the faster of "
            "its two.\n")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    levers = "\n".join(f"  {name:<26}{change}" for name, (change, _) in LEVERS.items())
    parser = tool_parser(__doc__, epilog=f"levers:\n{levers}")
    add_common_arguments(parser)
    add_options_flag(parser)
    add_size_flag(parser)
    add = parser.add_argument
    add("--config", default=CONFIG, help="default: %(default)s")
    add("--levers", nargs="*", choices=LEVERS, metavar="NAME", help="default: all that change the base, but compile")
    add("--compile", action="store_true", help="without --levers: torch.compile too, which takes minutes")
    add("--impl", choices=IMPLEMENTATIONS, default="native", help="operator of the base; default: %(default)s")
    add("--dtype", choices=DTYPES, default="float32", help="of the base; half precision means autocast")
    add("--batch", type=int, help="images per step; default: 1 on a CPU, 2 on CUDA")
    add("--steps", type=int, help="steps to time; default: 5 on a CPU, 20 on CUDA")
    add("--num_workers", type=int, default=2, help="data-loading processes; default: %(default)s")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    device = check_device(args.device, [args.impl], "--impl torch")
    if args.threads:
        torch.set_num_threads(args.threads)
    on_gpu = device.type == "cuda"
    steps, batch = args.steps or (20 if on_gpu else 5), args.batch or (2 if on_gpu else 1)
    if min(steps, batch, *args.size) < 1 or args.num_workers < 0:
        raise UserError("--steps, --batch and --size must be at least 1, --num_workers at least 0")
    base = Recipe(args.config, parse_pairs(args.options), tuple(args.size), batch, args.dtype, device,
                  torch.get_num_threads(), operator=args.impl)
    base.config()  # an error in it should come before the work
    names = choose_levers(args.levers, base, args.compile)
    about = describe_run(device, args.dtype) | {"config": args.config, "size": args.size, "batch": batch,
                                                "steps": steps}
    records = measure_levers(base, names, steps)
    print("parts of a step ...", file=sys.stderr, flush=True)
    parts = in_fresh_process(measure_parts, base, steps, args.num_workers)  # it wraps functions
    heading = f"{summary_line(about)}; training of {args.config}, batch {batch}, {args.size[0]}x{args.size[1]} px\n"
    text = "\n".join([heading, report_levers(records, steps), report_parts(parts, batch), f"`{about['command']}`\n"])
    write_results(args, text, about | {"levers": records, "parts": parts})


if __name__ == "__main__":
    run_tool(main, parse_args())
