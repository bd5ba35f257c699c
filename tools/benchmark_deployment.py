"""Speed of one detector in PyTorch with the compiled operators and in OpenVINO, which take turns in one process.

    python tools/benchmark_deployment.py --markdown table.md
    python tools/benchmark_deployment.py weights/bccd_lite_dino.py --size 576 768

Needs the compiled operators of both: make env operators-openvino. Weights and images are random, int8 is calibrated on
such images too: only shapes matter. The exported files have the size fixed and hold one image.
"""
import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from common import add_size_flag, run_tool, tool_parser
from datasets.transforms import eval_limits
from deploy.graph import DetectionGraph
from deploy.openvino import write
from inference.artifact import Artifact
from inference.backends import Backend
from inference.backends.openvino import open_backend
from inference.backends.torch_model import TorchBackend
from measuring import describe_run, random_detector, summary_line, take_turns, write_results
from models.ops import implementation, native_available
from models.ops.native import BUILD_COMMAND
from util.cpu import keep_freed_memory
from util.errors import UserError
from util.markdown import table, three_digits

DTYPES = ("float32", "int8")
CALIBRATION = 2  # images


def export(detector: TorchBackend, size: tuple[int, int], dtypes: list[str], sampler: str,
           folder: Path) -> dict[str, Path]:
    """An .xml for each dtype."""
    shorter, longest = eval_limits(detector.options.data)
    artifacts = [Artifact(detector.card, size, 1, False, dtype, sampler, shorter, longest) for dtype in dtypes]
    graph = DetectionGraph(detector.model, detector.postprocess)
    images = [(torch.rand(1, 3, *size), torch.tensor([size[::-1]])) for _ in range(CALIBRATION)]
    paths = {artifact.dtype: folder / f"{artifact.dtype}.xml" for artifact in artifacts}
    for artifact in artifacts:
        write(graph, artifact, paths[artifact.dtype], images)
    return paths


def summarise(seconds: dict[str, list[float]], megabytes: dict[str, float]) -> list[dict]:
    """A record for each: milliseconds, and how many times as fast as the first and as the one before, the medians of
    the ratios of each round."""
    names, records = list(seconds), []
    for i, name in enumerate(names):
        def ratio(other: str, own: str = name) -> float:
            return statistics.median(a / b for a, b in zip(seconds[other], seconds[own]))

        records.append({"name": name, "ms": 1e3 * statistics.median(seconds[name]), "ms_best": 1e3 * min(seconds[name]),
                        "to_first": ratio(names[0]), "to_previous": ratio(names[max(i - 1, 0)]),
                        "mb": megabytes.get(name)})
    return records


def report(records: list[dict], rounds: int) -> str:
    columns = ["runs in", "ms, median", "ms, best", "times PyTorch's speed", "times the speed above", "weights, MB"]
    rows = [[r["name"], *(three_digits(r[key]) for key in ("ms", "ms_best", "to_first", "to_previous")),
             "" if r["mb"] is None else three_digits(r["mb"])] for r in records]
    return f"{table(columns, rows)}\n\n{rounds} rounds, in each of which all take a turn; ratios: medians of theirs.\n"


def main(args: argparse.Namespace) -> int:
    if not native_available("cpu"):
        raise UserError(f"the compiled operators for PyTorch are not built: {BUILD_COMMAND}")
    if args.threads:
        torch.set_num_threads(args.threads)
    keep_freed_memory()  # as main.py does
    size = tuple(args.size)
    detector = random_detector(args.config_file)
    runs: dict[str, Callable[[], object]] = {}
    megabytes = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        paths = export(detector, size, args.dtype, args.sampler, folder)
        backends: dict[str, Backend] = {"PyTorch float32": detector}
        for dtype, path in paths.items():
            backends[f"OpenVINO {dtype}"] = open_backend(path)
            megabytes[f"OpenVINO {dtype}"] = path.with_suffix(".bin").stat().st_size / 1e6
        for name, backend in backends.items():
            runs[name] = turn(backend, size)
        seconds = take_turns(runs, args.rounds)
    records = summarise(seconds, megabytes)
    about = describe_run(torch.device("cpu"), " and ".join(args.dtype)) | {
        "model": args.config_file, "size": args.size, "rounds": args.rounds, "sampler": args.sampler}
    text = "\n".join([f"{args.config_file}, {size[0]}x{size[1]}, {summary_line(about)}, {about['threads']} threads\n",
                      report(records, args.rounds), f"`{about['command']}`\n"])
    write_results(args, text, about | {"records": records})
    return 0


def turn(backend: Backend, size: tuple[int, int]) -> Callable[[], object]:
    images = [(torch.rand(3, *size, generator=torch.Generator().manual_seed(0)) * 255).to(torch.uint8)]

    def run() -> list[dict[str, Tensor]]:
        with implementation("native"):
            return backend.detect(images, [size[::-1]])

    return run


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = tool_parser(__doc__)
    add_size_flag(parser)
    add = parser.add_argument
    add("config_file", nargs="?", default="config/LiteDINO/r50_h3l1_2p1x3.py", help="default: %(default)s")
    add("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES), help="of the exported files; default: both")
    add("--sampler", choices=("native", "gather", "grid_sample"), default="native",
        help="default: %(default)s, the compiled operators")
    add("--rounds", type=int, default=7, help="default: %(default)s")
    add("--threads", type=int, help="CPU threads of both; default: torch's")
    add("--folder", type=Path, help="keep the exported files in this folder")
    add("--json", type=Path, metavar="FILE", help="write the numbers")
    add("--markdown", type=Path, metavar="FILE", help="write the table")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_tool(main, parse_args())
