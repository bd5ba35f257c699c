"""Speed and memory of the compiled deformable-attention operators compared with PyTorch's.

    python tools/benchmark_ops.py
    python tools/benchmark_ops.py --device cuda --dtype bfloat16 --json ops.json --markdown ops.md --picture ops.png

The maps are those of an 800x1333 image; heads, channels and points are those of the published models. Repetitions of
the two implementations alternate, so that a ratio compares neighbours in time. Inputs stay the same: caches are warm.
"""
import argparse
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from common import run_tool, tool_parser
from measure.memory import measure_memory
from measuring import (
    DTYPES,
    IMPLEMENTATIONS,
    add_common_arguments,
    check_device,
    describe_run,
    isolated_on_cpu,
    summary_line,
    write_results,
)
from models.ops import implementation, key_aware_deform_attn, ms_deform_attn
from reports.style import save_figure
from util.cpu import keep_freed_memory
from util.markdown import table, three_digits

HEADS, CHANNELS, POINTS = 8, 32, 4
OFFSET = 3.0  # px, standard deviation of a token's sampling offsets on each level
SHORTEST = 20.0  # ms of a repetition, at least: fast operators run several times in it


@dataclass
class Size:
    """Maps (height, width), and who asks: tokens of the levels from `first_level` on, or `boxes` of a decoder."""

    meaning: str
    first_level: int = 0
    boxes: int = 0
    batch: int = 1
    levels: tuple[tuple[int, int], ...] = ((100, 167), (50, 84), (25, 42), (13, 21))


SIZES = {
    "all": Size("22,223 queries: all tokens"),
    "high": Size("5,523 queries: levels 2-4", first_level=1),
    "decoder": Size("900 queries: boxes", boxes=900),
    "decoder8": Size("1,100 queries: boxes, batch 8", boxes=1100, batch=8),
    "tiny": Size("279 queries: all tokens", levels=((12, 17), (6, 9), (3, 5), (2, 3))),
}
OPS = {"kda": "KDA", "kda_keys": "KDA, separate keys", "msda": "MSDA"}
PASSES = {"forward": "forward", "backward": "forward + backward"}
UNITS = {"ms": "ms", "mb": "MB"}


@dataclass
class Case:
    """One operator on one size; `inputs` are what it differentiates, `gradient` is that of its result."""

    run: Callable[[], Tensor]
    inputs: list[Tensor]
    gradient: Tensor

    def step(self, direction: str) -> Tensor | tuple[Tensor, ...]:
        """One of PASSES."""
        if direction == "backward":
            return torch.autograd.grad(self.run(), self.inputs, self.gradient)
        with torch.no_grad():
            return self.run()


def make_case(size: Size, op: str, dtype: torch.dtype, device: torch.device) -> Case:
    """Random inputs, the same on every machine. As under autocast, locations and attention weights stay float32."""
    generator = torch.Generator().manual_seed(0)
    locations = make_locations(size, generator)
    tokens, queries = sum(h * w for h, w in size.levels), locations.shape[1]

    def features(count: int) -> Tensor:
        x = torch.randn(size.batch, count, HEADS, CHANNELS, generator=generator)
        return x.to(device, dtype).requires_grad_()

    value, levels = features(tokens), list(size.levels)
    weights = torch.randn(locations.shape[:3] + (len(levels) * POINTS,), generator=generator).softmax(-1)
    weights = weights.view(locations.shape[:-1]).to(device).requires_grad_()
    locations = locations.to(device).requires_grad_()
    gradient = features(queries).detach().flatten(2)
    if op == "msda":
        return Case(lambda: ms_deform_attn(value, levels, locations, weights), [value, locations, weights], gradient)
    query, key = features(queries), features(tokens) if op == "kda_keys" else value
    inputs = [query, value, locations] + ([key] if key is not value else [])
    return Case(lambda: key_aware_deform_attn(query, key, value, levels, locations), inputs, gradient)


def make_locations(size: Size, generator: torch.Generator) -> Tensor:
    """[B, Q, M, L, P, 2] as (x, y): tokens look a few pixels around themselves, boxes all over their area."""
    if size.boxes:
        centre, extent = torch.rand(2, size.batch, size.boxes, 1, 1, 1, 2, generator=generator)
        spread = (0.05 + 0.45 * extent) / 2 * torch.ones(len(size.levels), 1, 1)
    else:
        grids = [torch.cartesian_prod((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w).flip(-1)
                 for h, w in size.levels[size.first_level:]]
        centre = torch.cat(grids).expand(size.batch, -1, -1)[:, :, None, None, None]
        spread = OFFSET / torch.tensor([(w, h) for h, w in size.levels])[:, None]
    shape = *centre.shape[:2], HEADS, len(size.levels), POINTS, 2
    return centre + spread * torch.randn(shape, generator=generator)


def time_calls(call: Callable[[], Any], names: list[str], repeat: int, device: torch.device) -> dict[str, list[float]]:
    """Milliseconds per call by implementation: `repeat` measurements of each, in turn, after two calls to warm up."""
    launches = {}
    for name in names:
        with implementation(name):
            elapsed(call, 1, device)
            launches[name] = min(1000, math.ceil(SHORTEST / elapsed(call, 1, device)))
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(repeat):
        for name in names:
            with implementation(name):
                times[name].append(elapsed(call, launches[name], device))
    return times


def elapsed(call: Callable[[], Any], launches: int, device: torch.device) -> float:
    """Milliseconds per call, the mean of `launches` in a row."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(launches):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / launches
    begin = time.perf_counter()
    for _ in range(launches):
        call()
    return (time.perf_counter() - begin) * 1e3 / launches


def operator_memory(size: str, op: str, dtype: torch.dtype, device: torch.device, name: str,
                    threads: int) -> dict[str, float | None]:
    """MB by pass: results, gradients and whatever the operator allocates, but not its inputs.

    The tiny calls before load libraries and start threads; they are too small to raise the peak of those that count.
    """
    torch.set_num_threads(threads)
    memory = {}
    with implementation(name):
        for direction in PASSES:
            make_case(SIZES["tiny"], op, dtype, device).step(direction)
        case = make_case(SIZES[size], op, dtype, device)
        for direction in PASSES:
            memory[direction] = measure_memory(partial(case.step, direction), device)[0]
    return memory


def run_case(size: str, op: str, names: list[str], dtype: torch.dtype, device: torch.device, repeat: int) -> list[dict]:
    """A record for each pass."""
    threads = torch.get_num_threads()
    memory = {name: isolated_on_cpu(device, operator_memory, size, op, dtype, device, name, threads) for name in names}
    case = make_case(SIZES[size], op, dtype, device)
    records = []
    for direction in PASSES:
        times = time_calls(partial(case.step, direction), names, repeat, device)
        record = {"op": op, "size": size, "batch": SIZES[size].batch, "queries": case.gradient.shape[1],
                  "pass": direction}
        record |= {name: {"ms": min(times[name]), "ms_median": median(times[name]), "mb": memory[name][direction]}
                   for name in names}
        records.append(with_ratios(record))
    return records


def with_ratios(record: dict) -> dict:
    """Adds how many times the PyTorch operator's time and memory are those of the compiled one."""
    if not IMPLEMENTATIONS.keys() <= record.keys():
        return record
    native, reference = record["native"], record["torch"]
    return record | {"ratio_ms": reference["ms"] / native["ms"],
                     "ratio_mb": reference["mb"] / native["mb"] if native["mb"] else None}


def report(about: dict, records: list[dict], names: list[str]) -> str:
    columns = ["operator", "size", "pass"]
    rows = [[OPS[record["op"]], SIZES[record["size"]].meaning, PASSES[record["pass"]]] for record in records]
    for key in ("ms", "mb"):
        columns += [f"{UNITS[key]} {IMPLEMENTATIONS[name]}" for name in names]
        for row, record in zip(rows, records):
            row += [three_digits(record[name][key]) for name in names]
        if len(names) == 2:
            columns.append("ratio")
            for row, record in zip(rows, records):
                row.append(three_digits(record[f"ratio_{key}"]))
    return (f"{summary_line(about)}\n\n{table(columns, rows)}\n\nms: best of {about['repeat']}; MB: peak beyond the "
            f"inputs; ratio: PyTorch / native.\n`{about['command']}`\n")


def draw(about: dict, records: list[dict], names: list[str], path: Path) -> None:
    """Bars: the times on a logarithmic axis, and beside them the ratios."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    colours = {"native": "#2563eb", "torch": "#9ca3af"}
    figure = Figure(figsize=(13, 1.6 + 0.42 * len(records)), layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    labels = [f"{OPS[r['op']]}, {SIZES[r['size']].meaning}, {PASSES[r['pass']]}" for r in records]
    height = 0.8 / len(names)
    for i, name in enumerate(names):
        places = [y + (i - (len(names) - 1) / 2) * height for y in range(len(records))]
        bars = panels[0].barh(places, [r[name]["ms"] for r in records], height, color=colours[name],
                              label=IMPLEMENTATIONS[name])
        panels[0].bar_label(bars, [f"{three_digits(r[name]['ms'])} ms" for r in records], padding=3, fontsize=8)
    panels[0].set(title="time of a call (less is better)", xlabel="ms, logarithmic", xscale="log")
    panels[0].xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    shortest, longest = (f(r[name]["ms"] for r in records for name in names) for f in (min, max))
    panels[0].set_xlim(shortest / 3, longest * 4)  # room for the numbers
    panels[0].set_yticks(range(len(records)), labels)
    panels[0].set_ylim(len(records) - 0.4, -0.6)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    if len(names) == 2:
        bars = panels[1].barh(range(len(records)), [r["ratio_ms"] for r in records], 0.6, color=colours["native"])
        panels[1].bar_label(bars, [f"{three_digits(r['ratio_ms'])}x" for r in records], padding=3, fontsize=8)
        panels[1].axvline(1, color="#9ca3af", linewidth=1, zorder=0)
        panels[1].set(title="times as fast as PyTorch (more is better)", xlabel="time PyTorch / time native")
        panels[1].set_xlim(right=panels[1].get_xlim()[1] * 1.12)
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle(summary_line(about), fontsize=11)
    save_figure(figure, path, dpi=130)


def parse_args() -> argparse.Namespace:
    parser = tool_parser(__doc__)
    add_common_arguments(parser)
    sizes = "; ".join(f"{name}: {size.meaning}" for name, size in SIZES.items())
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of queries, keys and values")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES)[:-1], help=sizes)
    parser.add_argument("--ops", nargs="+", choices=OPS, default=["kda", "msda"], help="default: kda msda")
    parser.add_argument("--only", choices=IMPLEMENTATIONS, help="one implementation, without ratios")
    parser.add_argument("--repeat", type=int, default=7, help="repetitions of each; default: %(default)s")
    parser.add_argument("--picture", type=Path, metavar="FILE.png", help="draw times and ratios")
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    names = [args.only] if args.only else list(IMPLEMENTATIONS)
    device = check_device(args.device, names, "--only torch")
    if args.threads:
        torch.set_num_threads(args.threads)
    if device.type == "cpu":
        keep_freed_memory()  # as main.py does
    about = describe_run(device, args.dtype) | {"repeat": args.repeat}
    records = []
    for op in args.ops:
        for size in args.sizes:
            print(f"{OPS[op]}, {SIZES[size].meaning} ...", file=sys.stderr, flush=True)
            records += run_case(size, op, names, DTYPES[args.dtype], device, args.repeat)
    text = report(about, records, names)
    write_results(args, text, about | {"cases": records})
    if args.picture:
        draw(about, records, names, args.picture)


if __name__ == "__main__":
    run_tool(main, parse_args())
