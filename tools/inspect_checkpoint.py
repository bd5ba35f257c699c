"""Which detector is in a checkpoint, and which config and options load it, from the names and shapes of its tensors.

    python tools/inspect_checkpoint.py CKPT
    python tools/inspect_checkpoint.py CKPT --data PATH [--images N]

A wrong `enc_scale` loads without complaint and evaluates to an AP near 0. With --data every possible value is
tried on the first N val images, and they are ranked by AP.
"""
import argparse
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common import ROOT, add_device_flag, run_tool, tool_parser
from datasets.coco import CocoDetection
from datasets.coco_eval import summarize
from datasets.loaders import eval_loader
from datasets.transforms import val_transforms
from detector_keys import keys_from_state
from engine import evaluate
from models import build_model
from models.encoders.interleaved import InterleavedEncoder
from models.postprocess import PostProcess
from util.checkpoint import load_weights, model_state, read_checkpoint
from util.config import Config, load_config
from util.devices import usable_device
from util.errors import UserError
from util.options import Options, parse_options

TITLES = {"dino": "DINO", "deformable_detr": "Deformable DETR", "detr": "DETR", "sdetr": "SDETR",
          "lite_sdetr": "Lite-SDETR"}


def flat_keys(options: Options) -> dict[str, Any]:
    """Each key with its value; a label book that follows the classes has their number."""
    keys = options.to_dict()
    if keys["dn_labelbook_size"] is None:
        keys["dn_labelbook_size"] = keys["num_classes"]
    return keys


def choose_config(found: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """The shipped config that needs the fewest options to agree with what was found, and these options."""
    candidates: list[tuple[Path, dict[str, Any]]] = []
    for path in sorted((ROOT / "config").glob("*/*.py")):
        if load_config(path).get("modelname") != found["modelname"]:
            continue
        options: dict[str, Any] = {}
        for _ in range(2):  # key_aware=None follows from num_expansion
            have = flat_keys(parse_options(load_config(path, options)))
            options |= {key: value for key, value in found.items() if have[key] != value}
        if found.get("num_expansion") and have["enc_scale"] >= found["num_feature_levels"]:
            options["enc_scale"] = found["num_feature_levels"] - 1  # a first guess: at least one level is low-level
        candidates.append((path, options))
    return min(candidates, key=lambda candidate: len(candidate[1]))


def undecided(model: nn.Module, found: dict[str, Any]) -> list[str]:
    """Keys that names and shapes do not tell."""
    lines = [] if "nheads" in found else ["nheads: 8 is usual; a wrong number loads without complaint"]
    encoder = _interleaved(model)
    if encoder is not None:
        lines.append(f"enc_scale: from 1 to {found['num_feature_levels'] - 1}; --data PATH tries them")
    if found.get("key_aware") and encoder is None:
        lines.append("num_expansion: small_expand=False leaves no trace of the blocks")
    if found.get("with_box_refine"):
        lines.append("look_forward_twice: matters only in training")
    if "num_queries" in found and not {"one2many", "num_queries_one2many"} & found.keys():
        lines.append("num_queries_one2many: num_queries counts the queries of a one-to-many branch, if any")
    if found.get("two_stage") and "num_queries" not in found:
        lines.append("num_queries: the queries are made from proposals, 300 is usual")
    if "backbone" not in found:
        lines.append("backbone: its names are timm's; set backbone=timm:NAME")
    if str(found.get("backbone", "")).startswith("resnet"):
        lines.append("dilation: the same weights serve both")
    return lines


def _interleaved(model: nn.Module) -> InterleavedEncoder | None:
    return next((m for m in model.modules() if isinstance(m, InterleavedEncoder)), None)


def rank_scales(model: nn.Module, postprocess: PostProcess, options: Options, data: str, images: int,
                device: torch.device) -> list[tuple[float, int]]:
    """(AP, enc_scale) on the first val images for each possible enc_scale, highest AP first. Raises UserError if they
    show nothing to measure AP with."""
    encoder = _interleaved(model)
    assert encoder is not None
    dataset = CocoDetection(data, "val", val_transforms(options.data, False))
    ranking = []
    for scale in range(1, options.transformer.num_feature_levels):
        encoder.enc_scale = scale
        evaluation = evaluate(model, None, postprocess, eval_loader(dataset, 1, 0), device, max_batches=images)
        ap = summarize(dataset.coco, evaluation.detections).stats[0]
        if ap < 0:
            raise UserError(f"no object is annotated in the first {images} val images of {data}: choose more "
                            "--images")
        ranking.append((ap, scale))
    return sorted(ranking, reverse=True)


def main(args: argparse.Namespace) -> int:
    """Returns the exit code: 1 if the weights do not load."""
    checkpoint = read_checkpoint(args.checkpoint)
    found = keys_from_state(model_state(checkpoint), checkpoint.get("config"))
    path, options = choose_config(found)
    lite = "Lite " if found.get("num_expansion") and found["modelname"] != "lite_sdetr" else ""
    print(f"{lite}{TITLES[found['modelname']]}, backbone {found.get('backbone', 'unknown')}")
    for key, value in found.items():
        print(f"  {key} = {value!r}")
    print(f"\nload it with\n  {_arguments(path, options)}")

    config: Config = load_config(path, options | {"pretrained_backbone": False})
    model, _, post = build_model(config)
    print("\nnames and shapes do not tell\n  " + "\n  ".join(undecided(model, found)))
    try:
        load_weights(model, checkpoint)
    except UserError as error:
        print(f"\nthese options do not load it: {error}")
        return 1
    print("\nthe weights load with these options")
    if args.data and _interleaved(model) is not None:
        device = usable_device(args.device)
        ranking = rank_scales(model.to(device), post["bbox"], parse_options(config), args.data, args.images,
                              device)
        print(f"\nAP on {args.images} val images")
        for ap, scale in ranking:
            print(f"  enc_scale={scale}  {ap:.3f}")
        print(f"\nload it with\n  {_arguments(path, options | {'enc_scale': ranking[0][1]})}")
    return 0


def _arguments(path: Path, options: dict[str, Any]) -> str:
    """The arguments of main.py."""
    pairs = [f"{key}={str(value).replace(' ', '')}" for key, value in options.items()]
    return " ".join([f"-c {path.relative_to(ROOT)}", *(["--options", *pairs] if pairs else [])])


if __name__ == "__main__":
    parser = tool_parser(__doc__)
    parser.add_argument("checkpoint", metavar="CKPT", help="a file or an https address")
    parser.add_argument("--data", "--coco_path", metavar="PATH",
                        help="try what shapes do not tell on val images of this data set")
    parser.add_argument("--images", type=int, default=50, help="how many val images")
    add_device_flag(parser)
    run_tool(main, parser.parse_args())
