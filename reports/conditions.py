"""How an evaluation was done: all that its numbers depend on besides the weights and the images."""
from collections.abc import Mapping
from typing import Any

import torch

from datasets.transforms import eval_limits
from util.options import Options

# Groups of config keys that describe a detector, without the keys that only a training reads.
_DETECTOR = ("backbone", "position", "transformer", "encoder", "decoder", "stages", "deformable_detr", "postprocess")
_OF_TRAINING = {
    "pretrained_backbone", "backbone_dir", "backbone_freeze_keywords", "drop_path_rate", "use_checkpoint", "dropout",
    "deformable_use_checkpoint", "use_detached_boxes_dec_out", "look_forward_twice"}


def conditions(options: Options, dtype: torch.dtype | None = None, fix_size: bool = False,
               max_batches: int | None = None) -> dict[str, Any]:
    """For JSON: "precision"; "shorter_side" and "longest_side", which images are resized to, px; "fix_size": whether
    they all get these sides; "max_batches": how many were looked at, None for all; "eval_batch_size", whose padding
    moves boxes a little; and the config keys of the detector and of its post-processing.

    dtype: the half precision of autocast, None for full precision.
    """
    shorter, longest = eval_limits(options.data)
    values = {name: value for group in _DETECTOR for name, value in vars(getattr(options, group)).items()}
    return {"precision": str(dtype or torch.float32).removeprefix("torch."), "shorter_side": shorter,
            "longest_side": longest, "fix_size": fix_size, "max_batches": max_batches,
            "eval_batch_size": options.data.eval_batch_size, "modelname": options.modelname,
            "classification": options.loss.classification,
            **{name: value for name, value in values.items() if name not in _OF_TRAINING}}


def differences(found: Mapping[str, Any], options: Options) -> list[str]:
    """In words, where an evaluation was another one than that of these options. Precision and batch size do not count:
    they are a choice of whoever evaluates."""
    free = {"precision", "eval_batch_size"}
    return [f"{name}={found.get(name)!r} instead of {value!r}" for name, value in conditions(options).items()
            if name not in free and found.get(name) != value]
