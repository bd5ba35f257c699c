"""What Predictor adds to the time of its detector: reading, decoding and resizing an image, normalisation, the choice
of detections, and the result.

    python tools/benchmark_predictor.py bccd_lite_dino
    python tools/benchmark_predictor.py config/LiteDINO/r50_h3l1_2p1x3.py --sides 640 480

The image is a JPEG of a generated picture. The detector answers at once with what it found in it before, so that what
is left is Predictor's own time. A config file stands for a detector with random weights.
"""
import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common import run_tool, tool_parser
from datasets.images import read_image
from datasets.synthetic import generate
from inference.backends.torch_model import TorchBackend, open_backend
from inference.predictor import Predictor
from measuring import describe_run, random_detector, summary_line, write_results
from util.markdown import table, three_digits


class Answered(nn.Module):
    """A detector that knows its outputs."""

    def __init__(self, outputs: dict[str, Tensor]):
        super().__init__()
        self.outputs = outputs

    def forward(self, *inputs: Any) -> dict[str, Tensor]:
        return self.outputs


def picture(folder: Path, width: int, height: int) -> Path:
    """A JPEG of this size in the folder."""
    generate(folder / "set", train=1, val=1, seed=0, size=max(width, height))
    image = read_image(next((folder / "set/val2017").iterdir())).resize((width, height))
    image.save(folder / "image.jpg", quality=90)
    return folder / "image.jpg"


def opened(detector: str) -> TorchBackend:
    return random_detector(detector) if Path(detector).suffix == ".py" else open_backend(detector)


def milliseconds(call: Any, rounds: int) -> list[float]:
    times = []
    for _ in range(rounds + 3):
        begin = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - begin))
    return times[3:]  # the first ones are slower


def main(args: argparse.Namespace) -> None:
    if args.threads:
        torch.set_num_threads(args.threads)
    backend = opened(args.detector)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        path = picture(Path(folder), *args.sides)
        predictor = Predictor(backend)
        image = read_image(path)
        resized = torch.zeros(3, *backend.input_size(*image.size), dtype=torch.uint8)
        answered: Any = Answered(backend.model(backend.model_input([resized])))
        backend.model = answered
        parts = {"all": lambda: predictor(path), "of that, reading and decoding": lambda: read_image(path)}
        times = {name: milliseconds(call, args.rounds) for name, call in parts.items()}
    records: list[dict[str, Any]] = [{"name": name, "ms": statistics.median(x), "ms_best": min(x)}
                                     for name, x in times.items()]
    about = describe_run(torch.device("cpu"), "float32") | {
        "model": args.detector, "sides": args.sides, "input": list(resized.shape[1:]), "rounds": args.rounds}
    rows = [[r["name"], three_digits(r["ms"]), three_digits(r["ms_best"])] for r in records]
    text = "\n".join([
        f"{args.detector}, JPEG of {args.sides[0]}x{args.sides[1]}, resized to {resized.shape[2]}x{resized.shape[1]}, "
        f"{summary_line(about)}\n", table(["Predictor without the detector", "ms, median", "ms, best"], rows),
        f"\n{args.rounds} images.\n", f"`{about['command']}`\n"])
    write_results(args, text, about | {"records": records})


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = tool_parser(__doc__)
    add = parser.add_argument
    add("detector", nargs="?", default="bccd_lite_dino", help="weights, a name, or a config file; default: %(default)s")
    add("--sides", nargs=2, type=int, default=[640, 480], metavar=("W", "H"), help="of the JPEG; default: 640 480")
    add("--rounds", type=int, default=50, help="default: %(default)s")
    add("--threads", type=int, help="CPU threads; default: torch's")
    add("--json", type=Path, metavar="FILE", help="write the numbers")
    add("--markdown", type=Path, metavar="FILE", help="write the table")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_tool(main, parse_args())
