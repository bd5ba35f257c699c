"""Detectors made ready for detection alone: folded norms, no predictions that only losses read, half precision."""
import copy
from typing import Any

import torch
from torch import Tensor, nn

from models.detector import Detector
from models.layers.fused_conv import fuse_convolutions
from models.layers.normed_conv import fold_batch_norms
from util.precision import place

# What ends in coordinates or scores: the box and class heads, and Deformable DETR's reference points.
IN_FLOAT32 = {"class_embed", "bbox_embed", "enc_out_class_embed", "enc_out_bbox_embed", "reference_points"}
CASTING = (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.GroupNorm, nn.MultiheadAttention)


def for_inference(model: Detector, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Detector:
    """A copy of the model in evaluation mode that finds the same objects with less work: frozen batch norms are part of
    the convolutions before them, and of the outputs only "pred_logits" and "pred_boxes" are computed.

    dtype: a half precision for the weights and what passes between the modules, without autocast; see `to_half`.
    device: where it shall be; on a CPU its convolutions are fused with what follows them. Without one it stays where
    the model is, with plain convolutions.

    The copy cannot be trained, evaluated with losses, or saved as weights of the model. A copy of it is the same again.
    """
    ready = copy.deepcopy(model).eval().requires_grad_(False)
    fold_batch_norms(ready.backbone[0])
    if device is not None and device.type == "cpu":
        ready.backbone[0] = fuse_convolutions(ready.backbone[0])  # assigned from outside: only here
    ready.detections_only = True  # assigned from outside: only here
    if dtype not in (None, torch.float32, ready.half_dtype):
        assert ready.half_dtype is None, f"the model is in {ready.half_dtype} already"
        to_half(ready, dtype)
    return ready if device is None else place(ready, device)


def to_half(model: Detector, dtype: torch.dtype) -> None:
    """Changes a model in place, so that it computes in half precision without autocast: weights and what passes between
    the modules. Coordinates, scores and the softmax over samples stay in float32."""
    model.half_dtype = dtype  # assigned from outside: only here
    for name, module in model.named_modules():
        own = torch.float32 if IN_FLOAT32.intersection(name.split(".")) else dtype
        for parameter in module.parameters(recurse=False):
            parameter.data = parameter.data.to(own)  # assigned from outside: as nn.Module.to does
        if isinstance(module, CASTING):
            module.register_forward_pre_hook(_Cast(own), with_kwargs=True)
        if name.endswith("attention_weights"):
            module.register_forward_hook(_to_float32)


class _Cast:
    """Gives a module its arguments in one dtype."""

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return tuple(map(self._cast, args)), {name: self._cast(value) for name, value in kwargs.items()}

    def _cast(self, value: Any) -> Any:
        return value.to(self.dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _to_float32(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
    return output.float()
