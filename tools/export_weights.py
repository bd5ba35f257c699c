"""Makes a small file for others from a training's checkpoint: python tools/export_weights.py CHECKPOINT OUT.safetensors

Keeps only the weights (their average, if the training kept one): matrices and convolutions in half precision, the
rest as it is. Config, class names, and from the summary.json beside the checkpoint AP and the best scores of its
classes go along as metadata, so that the file alone is enough to evaluate and to detect with; the config goes to OUT.py
beside it too, to train with.
"""
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from common import run_tool, tool_parser
from reports.conditions import differences
from reports.numbers import NAME, Measured, read_numbers
from util import model_card
from util.checkpoint import checksum, model_state, read_checkpoint
from util.config import Config
from util.errors import UserError
from util.files import atomic_write
from util.model_card import ModelCard
from util.options import parse_options
from util.run_folder import git_hash


def export(source: Path, target: Path, summary: Path | None = None) -> None:
    """summary: a summary.json; by default the one beside the checkpoint, if it is of the same weights.

    Raises UserError for a checkpoint without config or class names, for targets that exist, and for a `summary` that
    cannot be read or is of other weights or options.
    """
    checkpoint, config = read_checkpoint(source), target.with_suffix(".py")
    if "config" not in checkpoint or "class_names" not in checkpoint:
        raise UserError(f"{source} holds no config and class names: it is not a checkpoint of a training by main.py")
    if target.suffix != ".safetensors":
        raise UserError(f"{target}: name it .safetensors")
    for path in (target, config):
        if path.exists():
            raise UserError(f"{path} exists already")
    # Weights that were exported before keep what their card says was measured.
    card = checkpoint.get("card") or ModelCard(checkpoint["config"], checkpoint["class_names"], commit=git_hash())
    measured = measured_numbers(source, checkpoint, card, summary)
    if measured is not None:
        card = replace(card, thresholds=measured.thresholds, measured=measured.stats, measured_on=measured_on(measured))
    fault = card.fault()
    if fault:
        raise UserError(f"{source}: {fault}")
    weights = {name: compressed(tensor) for name, tensor in model_state(checkpoint, ema=True).items()}
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(target) as temporary:
        temporary.write_bytes(save(weights, {model_card.KEY: json.dumps(card.to_dict())}))
        Config(card.config).dump(config)  # within: both files are there or none
    print(f"{target}: {target.stat().st_size / 1e6:.1f} MB; {config}\n"
          f"python main.py --eval --data DIR --resume {target}")


def measured_numbers(source: Path, checkpoint: dict[str, Any], card: ModelCard, summary: Path | None
                     ) -> Measured | None:
    """What summary.json says of these weights with the config of their card. None, with a message, if the one beside
    them says nothing of that."""
    path = summary or source.with_name(NAME)
    try:
        measured = read_numbers(path, checksum(checkpoint, ema=True))
        other = differences(measured.evaluation, parse_options(Config(card.config)))
        if other:
            raise UserError(f"{path} was measured otherwise than the config of the weights says: {', '.join(other)}. "
                            "Evaluate them without --options and the like")
        return measured
    except UserError as error:
        if summary is not None:
            raise
        if "card" not in checkpoint:
            print(f"without AP and best scores: {error}")
        return None


def measured_on(measured: Measured) -> str:
    how = measured.evaluation
    return (f"{measured.images} val images of {Path(measured.facts.get('data', '')).name}, shorter side "
            f"{how['shorter_side']} px, in {how['precision']}")


def compressed(tensor: Tensor) -> Tensor:
    """Half precision for the weights of matrix products and convolutions; statistics of norms may exceed its range."""
    return (tensor.half() if tensor.is_floating_point() and tensor.dim() > 1 else tensor.clone()).contiguous()


if __name__ == "__main__":
    parser = tool_parser(__doc__)
    parser.add_argument("source", type=Path, metavar="CHECKPOINT")
    parser.add_argument("target", type=Path, metavar="OUT.safetensors")
    parser.add_argument("--summary", type=Path, metavar="FILE", help="the summary.json of an evaluation of CHECKPOINT")
    args = parser.parse_args()
    run_tool(export, args.source, args.target, args.summary)
