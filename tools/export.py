"""Writes a trained detector as a file that runs without this project: python tools/export.py WEIGHTS --format onnx

Writes NAME.onnx, NAME.xml (with NAME.bin) or NAME.pt2 to --output_dir, NAME being that of the weights (of a training's
checkpoint with its folder in front: run_checkpoint_best), with _float16 and the like for other precisions.
docs/deployment.md says which format is for what.

--verify DIR (a COCO folder) runs the file and PyTorch on the val images, says how far they differ, and writes that to
FILE.verify.json; the exit code is 1 if they differ by more than the tolerance that is printed.
"""
import argparse
import importlib
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import torch

from common import run_tool, tool_parser
from datasets.transforms import eval_limits
from deploy import FORMATS
from deploy.graph import DetectionGraph
from deploy.verify import Comparison, calibration, open_data, verify
from inference.artifact import DTYPES, LARGEST, SAMPLERS, Artifact
from inference.backends.torch_model import TorchBackend
from inference.backends.torch_model import open_backend as open_weights
from inference.predictor import EXPORTED, open_backend
from util.errors import UserError
from util.files import write_text
from util.outputs import keep_inputs, name_of_weights


def main(args: argparse.Namespace) -> int:
    """Returns the exit code."""
    plan = planned(args)
    keep_inputs([path for module, _, path in plan for path in (*module.outputs(path), report_path(path))],
                [args.weights, args.config_file, args.verify])
    detector = open_weights(args.weights, config=args.config_file, options=args.options)
    data = None if args.verify is None else open_data(args.verify, detector.card)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    good = True
    for module, dtype, path in plan:
        artifact = described(detector, args, dtype, args.sampler or module.SAMPLERS[0])
        graph = DetectionGraph(detector.model, detector.postprocess,
                               torch.float32 if dtype in module.FROM_FLOAT32 else getattr(torch, dtype))
        inputs = calibration(args.verify, artifact) if dtype == "int8" else None
        files = module.write(graph, artifact, path, inputs)
        size = sum(file.stat().st_size for file in files)
        print(f"wrote {', '.join(map(str, files))}: {size / 1e6:.1f} MB", flush=True)
        if data is not None:
            result = verify(open_backend(path), detector, dtype, data, args.verify_images, artifact.batch or 1)
            good = good and not report(result, path)
    return 0 if good else 1


def planned(args: argparse.Namespace) -> list[tuple[ModuleType, str, Path]]:
    """Format, precision and path of each file. Raises UserError for what a format cannot write."""
    if Path(args.weights).suffix.lower() in EXPORTED:
        raise UserError(f"{args.weights} is an exported file already: name the weights that it was made from")
    if args.size is not None and not all(0 < side <= LARGEST for side in args.size):
        raise UserError(f"--size {args.size[0]} {args.size[1]} must be from 1 to {LARGEST} px")
    if args.batch < 1:
        raise UserError(f"--batch {args.batch} must be at least 1")
    if args.verify_images is not None and args.verify_images < 1:
        raise UserError(f"--verify_images {args.verify_images} must be at least 1")
    if "int8" in args.dtype and args.verify is None:
        raise UserError("--dtype int8 needs images to measure ranges on: name a COCO folder with --verify DIR")
    plan = []
    for name in dict.fromkeys(args.format):
        try:
            module = importlib.import_module(FORMATS[name])
        except ImportError as error:
            raise UserError(f"--format {name} cannot be written here ({error})") from error
        for dtype in dict.fromkeys(args.dtype):
            if dtype not in module.DTYPES:
                raise UserError(f"--format {name} has no {dtype}, only {', '.join(module.DTYPES)}")
            stem = name_of_weights(args.weights) + ("" if dtype == "float32" else f"_{dtype}")
            plan.append((module, dtype, args.output_dir / f"{stem}{module.SUFFIX}"))
        if args.sampler is not None and args.sampler not in module.SAMPLERS:
            raise UserError(f"--format {name} has no --sampler {args.sampler}, only {', '.join(module.SAMPLERS)}")
    return plan


def described(detector: TorchBackend, args: argparse.Namespace, dtype: str, sampler: str) -> Artifact:
    shorter, longest = eval_limits(detector.options.data)
    batch = None if args.dynamic_batch else args.batch
    card = detector.card
    if card.measured and dtype != "float32":
        card = replace(card, measured_on=f"{card.measured_on}, with weights in float32, not with this {dtype} file")
    return Artifact(card, None if args.size is None else tuple(args.size), batch, args.uint8, dtype, sampler,
                    shorter, longest, detector.postprocess.nms_iou_threshold)


def report(result: Comparison, path: Path) -> list[str]:
    """Prints and writes it. Returns the tolerances that are exceeded."""
    print(f"{path} against PyTorch on {result}", flush=True)
    write_text(report_path(path), json.dumps(result.to_dict(), indent=1) + "\n")
    return result.exceeded


def report_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.verify.json")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = tool_parser(__doc__)
    parser.add_argument("weights", metavar="WEIGHTS", help="a checkpoint (.pth) or weights (.safetensors)")
    parser.add_argument("--config_file", "-c", help="config file, where the weights carry no config")
    parser.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="override config keys")
    parser.add_argument("--format", nargs="+", default=["onnx"], choices=list(FORMATS), help="default: onnx")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--size", nargs=2, type=int, metavar=("H", "W"),
                      help="every image is resized to this height and width, px")
    size.add_argument("--dynamic", action="store_true", help="images of any size; the default")
    batch = parser.add_mutually_exclusive_group()
    batch.add_argument("--batch", type=int, default=1, metavar="N", help="images of a call; default: 1")
    batch.add_argument("--dynamic_batch", action="store_true", help="any number of images")
    parser.add_argument("--dtype", nargs="+", default=["float32"], choices=DTYPES, help="default: float32")
    parser.add_argument("--uint8", action="store_true", help="images are uint8 in [0, 255] instead of float in [0, 1]")
    parser.add_argument("--sampler", choices=list(SAMPLERS), help="form of the deformable attention; default: the "
                        "format's, see docs/deployment.md. native: the compiled operators of this project")
    parser.add_argument("--verify", type=Path, metavar="DIR", help="COCO folder to compare with PyTorch on; int8 takes "
                        "its ranges from there too")
    parser.add_argument("--verify_images", type=int, metavar="N", help="only the first N val images")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/export"))
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_tool(main, parse_args())
