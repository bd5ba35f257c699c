"""Speed of this project's detectors and of those of transformers, at equal pixels and threads, all in one process.

    python tools/benchmark_peers.py --markdown peers.md --plot peers.png
    python tools/benchmark_peers.py Lite-DINO RT-DETR --forms eager openvino --size 640 640 --threads 1

Names are parts of the detectors' names; without any, all are compared. Weights and images are random: only shapes
matter. The AP in the table is what each one's paper reports for its own training.
"""
import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from common import run_tool, tool_parser
from deploy.openvino import nodes_of_operators
from measuring import describe_run, summary_line, take_turns, write_results
from models.ops import implementation, native_available, openvino_nodes
from models.ops.native import BUILD_COMMAND
from peers import Contender, Own, chosen
from reports.style import plain_axes, save_figure
from util.cpu import keep_freed_memory
from util.errors import UserError
from util.markdown import table, three_digits
from util.optional import require

Run = Callable[[], object]
FORMS = {"eager": "PyTorch", "compiled": "torch.compile", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
COLOURS = ["#2563eb", "#059669", "#ea580c", "#c026d3"]
ONNX_OPSET, OPENVINO_OPSET = 20, 18  # as deploy/ writes files


def in_torch(module: nn.Module, images: Tensor) -> Run:
    @torch.inference_mode()
    def run() -> object:
        return module(images)

    return run


def compiled(module: nn.Module, images: Tensor) -> Run:
    torch.compiler.reset()
    return in_torch(torch.compile(module), images)  # type: ignore[arg-type]


def as_onnx(module: nn.Module, images: Tensor, opset: int, sampling: str, nodes: dict[Any, Any] | None = None) -> bytes:
    """A file for images of this size. sampling: what computes the deformable attention of this project."""
    with torch.no_grad(), implementation(sampling):
        program = torch.export.export(module, (images,), strict=False)
        written = torch.onnx.export(program, dynamo=True, opset_version=opset, input_names=["images"],
                                    custom_translation_table=nodes, verbose=False)
    assert written is not None
    return written.model_proto.SerializeToString()


def in_onnxruntime(module: nn.Module, images: Tensor) -> Run:
    require("onnx", "onnxscript", "onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(as_onnx(module, images, ONNX_OPSET, "torch"), options,
                                           ["CPUExecutionProvider"])
    pixels = images.numpy()
    return lambda: session.run(None, {"images": pixels})


def in_openvino(module: nn.Module, images: Tensor) -> Run:
    """This project's detectors with the compiled operators as nodes, where they are built."""
    require("onnx", "onnxscript", "openvino")
    core = openvino_nodes.shared_core()
    own = isinstance(module, Own) and openvino_nodes.available()
    if own:
        openvino_nodes.add_nodes(core, "benchmark_peers.py")
    content = as_onnx(module, images, OPENVINO_OPSET, "native" if own else "torch",
                      nodes_of_operators() if own else None)
    model = core.compile_model(core.read_model(content, b""), "CPU", {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32"})
    pixels = np.ascontiguousarray(images.numpy())
    return lambda: model([pixels])


RUNNERS: dict[str, Callable[[nn.Module, Tensor], Run]] = {
    "eager": in_torch, "compiled": compiled, "onnxruntime": in_onnxruntime, "openvino": in_openvino}


def measure(contenders: list[Contender], forms: list[str], size: tuple[int, int], threads: int,
            rounds: int) -> list[dict]:
    """A record of each detector in each form: milliseconds, the median and the best; or why there are none."""
    torch.set_num_threads(threads)
    images = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    runs: dict[str, Run] = {}
    records: list[dict] = []
    for contender in contenders:
        if any(side % contender.multiple for side in size):
            records += [_record(contender, form, size, threads, why=f"takes sides that are multiples of "
                                f"{contender.multiple}") for form in forms]
            continue
        torch.manual_seed(0)
        module = contender.build().eval().requires_grad_(False)
        for form in forms:
            print(f"{contender.name}, {FORMS[form]}, {size[0]}x{size[1]} ...", file=sys.stderr, flush=True)
            key = f"{contender.name} {form}"
            try:
                runs[key] = RUNNERS[form](module, images)
                runs[key]()
                records.append(_record(contender, form, size, threads, key=key))
            except UserError:
                raise
            except Exception as error:  # a peer that cannot be exported or compiled is a result
                runs.pop(key, None)
                lines = str(error).strip().splitlines() or [type(error).__name__]
                records.append(_record(contender, form, size, threads, why=lines[0][:160]))
    seconds = take_turns(runs, rounds)
    for record in records:
        if key := record.pop("key", None):
            record |= {"ms": 1e3 * float(np.median(seconds[key])), "ms_best": 1e3 * min(seconds[key])}
    return records


def _record(contender: Contender, form: str, size: tuple[int, int], threads: int, **more: Any) -> dict:
    return {"name": contender.name, "ap": contender.ap, "source": contender.source, "form": form, "size": list(size),
            "threads": threads, **more}


def report(records: list[dict], forms: list[str], rounds: int) -> str:
    """A table for each size and number of threads, what could not be measured, and where the APs are from."""
    settings = dict.fromkeys((tuple(r["size"]), r["threads"]) for r in records)
    parts = [_table([r for r in records if (tuple(r["size"]), r["threads"]) == setting], forms) for setting in settings]
    parts.append(f"Best of {rounds} rounds, in each of which all take a turn; one image, float32, random weights.")
    failures = dict.fromkeys(f"- {r['name']}, {FORMS[r['form']]}, {r['size'][0]}x{r['size'][1]}: {r['why']}"
                             for r in records if "why" in r)
    if failures:
        parts.append("Not measured:\n\n" + "\n".join(failures))
    sources = "\n".join(dict.fromkeys(f"- {r['name']}: {r['source']}" for r in records))
    parts.append(f"AP on COCO's val set, at the image size of its paper:\n\n{sources}")
    return "\n\n".join(parts) + "\n"


def _table(records: list[dict], forms: list[str]) -> str:
    """Of one size and number of threads."""
    cells = {(r["name"], r["form"]): r for r in records}
    names = list(dict.fromkeys(r["name"] for r in records))
    first, rows = cells[names[0], forms[0]].get("ms_best"), []
    for name in names:
        times = [cells[name, form].get("ms_best") for form in forms]
        ap = cells[name, forms[0]]["ap"]
        rows.append([name, "-" if ap is None else str(ap), *(three_digits(t) for t in times),
                     three_digits(times[0] / first if times[0] and first else None)])
    columns = ["detector", "AP by its paper", *(f"{FORMS[form]}, ms" for form in forms),
               f"{FORMS[forms[0]]} / that of the first"]
    return f"### {_setting(records[0]['size'], records[0]['threads'])}\n\n{table(columns, rows)}"


def _setting(size: Sequence[int], threads: int) -> str:
    return f"{size[0]}x{size[1]} px, {threads} {'thread' if threads == 1 else 'threads'}"


def plot(records: list[dict], forms: list[str], path: Path) -> None:
    """A picture of the best times: a panel for each size and number of threads, a bar for each form."""
    settings = list(dict.fromkeys((tuple(r["size"]), r["threads"]) for r in records))
    names = list(dict.fromkeys(r["name"] for r in records))
    figure = Figure(figsize=(4.5 + 3.4 * len(settings), 1.6 + 0.22 * len(names) * (len(forms) + 1)), dpi=130,
                    layout="constrained")
    height = 0.8 / len(forms)
    for axes, (size, threads) in zip(figure.subplots(1, len(settings), squeeze=False, sharey=True)[0], settings):
        plain_axes(axes)
        for i, form in enumerate(forms):
            times = {r["name"]: r.get("ms_best") or 0 for r in records
                     if (tuple(r["size"]), r["threads"], r["form"]) == (size, threads, form)}
            axes.barh([place + (i - (len(forms) - 1) / 2) * height for place in range(len(names))],
                      [times[name] for name in names], height, color=COLOURS[i], label=FORMS[form])
        axes.set(title=_setting(size, threads), xlabel="ms")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.legend(frameon=False, fontsize=8)
    save_figure(figure, path)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = tool_parser(__doc__)
    add = parser.add_argument
    add("names", nargs="*", help="parts of names; the first detector found is the one that others are compared with")
    add("--forms", nargs="+", choices=FORMS, default=list(FORMS), help="default: all")
    add("--size", nargs=2, type=int, action="append", metavar=("H", "W"), help="may be given several times; default: "
        "640 640 and 800 1088")
    add("--threads", nargs="+", type=int, default=[1, torch.get_num_threads()], help="default: 1 and torch's")
    add("--rounds", type=int, default=5, help="default: %(default)s")
    add("--json", type=Path, metavar="FILE", help="write the numbers")
    add("--markdown", type=Path, metavar="FILE", help="write the tables")
    add("--plot", type=Path, metavar="FILE", help="write a picture")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> int:
    if not native_available("cpu"):
        raise UserError(f"the compiled operators are not built: {BUILD_COMMAND}")
    keep_freed_memory()  # as main.py does
    contenders, forms = chosen(args.names), list(dict.fromkeys(args.forms))
    about = describe_run(torch.device("cpu"), "float32")
    records = []
    for size in args.size or [[640, 640], [800, 1088]]:
        for threads in dict.fromkeys(args.threads):
            records += measure(contenders, forms, tuple(size), threads, args.rounds)
    text = "\n".join([f"{summary_line(about)}\n", report(records, forms, args.rounds), f"`{about['command']}`\n"])
    write_results(args, text, about | {"rounds": args.rounds, "records": records})
    if args.plot:
        plot(records, forms, args.plot)
    return 0


if __name__ == "__main__":
    run_tool(main, parse_args())
