"""Makes a small file for others from a training's checkpoint: python tools/export_weights.py CHECKPOINT OUT.safetensors

Keeps only the weights (their average, if the training kept one): matrices and convolutions in half precision, the
rest as it is. Class names are stored with them, and the config goes to OUT.py beside it.
"""
import json
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from common import run_tool, tool_parser
from util.checkpoint import model_state, read_checkpoint
from util.config import Config
from util.errors import UserError
from util.files import atomic_write


def export(source: Path, target: Path) -> None:
    """Raises UserError for a checkpoint without config or class names, and for targets that exist."""
    checkpoint, config = read_checkpoint(source), target.with_suffix(".py")
    if "config" not in checkpoint or "class_names" not in checkpoint:
        raise UserError(f"{source} holds no config and class names: it is not a checkpoint of a training by main.py")
    if target.suffix != ".safetensors":
        raise UserError(f"{target}: name it .safetensors")
    for path in (target, config):
        if path.exists():
            raise UserError(f"{path} exists already")
    weights = {name: compressed(tensor) for name, tensor in model_state(checkpoint, ema=True).items()}
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(target) as temporary:
        temporary.write_bytes(save(weights, {"class_names": json.dumps(checkpoint["class_names"])}))
        Config(checkpoint["config"]).dump(config)  # within: both files are there or none
    print(f"{target}: {target.stat().st_size / 1e6:.1f} MB; {config}\n"
          f"python main.py --eval -c {config} --coco_path DIR --resume {target}")


def compressed(tensor: Tensor) -> Tensor:
    """Half precision for the weights of matrix products and convolutions; statistics of norms may exceed its range."""
    return (tensor.half() if tensor.is_floating_point() and tensor.dim() > 1 else tensor.clone()).contiguous()


if __name__ == "__main__":
    parser = tool_parser(__doc__)
    parser.add_argument("source", type=Path, metavar="CHECKPOINT")
    parser.add_argument("target", type=Path, metavar="OUT.safetensors")
    args = parser.parse_args()
    run_tool(export, args.source, args.target)
