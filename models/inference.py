"""Detectors made ready for detection alone: folded norms, no predictions that only losses read, half precision."""
import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from models.backbones import Backbone
from models.detector import Detector
from models.layers.frozen_batch_norm import FrozenBatchNorm2d

# What ends in coordinates or scores: the box and class heads, and Deformable DETR's reference points.
IN_FLOAT32 = {"class_embed", "bbox_embed", "enc_out_class_embed", "enc_out_bbox_embed", "reference_points"}
CASTING = (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.GroupNorm, nn.MultiheadAttention)


def for_inference(model: Detector, dtype: torch.dtype | None = None) -> Detector:
    """A copy of the model in evaluation mode that finds the same objects with less work: frozen batch norms are part of
    the convolutions before them, and of the outputs only "pred_logits" and "pred_boxes" are computed.

    dtype: a half precision for the weights and what passes between the modules, without autocast; see `to_half`. The
    copy cannot be trained, evaluated with losses, or saved as weights of the model. One of a copy is the same again.
    """
    ready = copy.deepcopy(model).eval().requires_grad_(False)
    fold_batch_norms(ready.backbone)
    ready.detections_only = True  # assigned from outside: only here
    if dtype not in (None, torch.float32, ready.half_dtype):
        assert ready.half_dtype is None, f"the model is in {ready.half_dtype} already"
        to_half(ready, dtype)
    return ready


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


@torch.no_grad()
def fold_batch_norms(backbone: Backbone) -> None:
    """Moves each frozen batch norm that alone reads a convolution's output into that convolution, in place."""
    names = {module: name for name, module in backbone.named_modules()}
    for conv, norm in foldable_pairs(backbone):
        scale = norm.weight.double() * (norm.running_var.double() + norm.eps).rsqrt()
        shift = (0 if conv.bias is None else conv.bias.double()) - norm.running_mean.double()
        kind = conv.weight.dtype
        weight = (conv.weight.double() * scale[:, None, None, None]).to(kind)
        bias = nn.Parameter((shift * scale + norm.bias.double()).to(kind), requires_grad=False)
        conv.weight.data = weight  # assigned from outside: it is no layer of this project
        conv.bias = bias  # assigned from outside: it is no layer of this project
        parent, _, name = names[norm].rpartition(".")
        setattr(backbone.get_submodule(parent), name, norm.after or nn.Identity().train(norm.training))


def foldable_pairs(backbone: Backbone) -> list[tuple[nn.Conv2d, FrozenBatchNorm2d]]:
    """Convolutions and the frozen batch norms that read their outputs, where each runs once and nothing else does."""
    convs = {id(m.weight): m for m in backbone.modules() if isinstance(m, nn.Conv2d)}
    norms = {id(m.weight): m for m in backbone.modules() if isinstance(m, FrozenBatchNorm2d)}
    some = next(backbone.parameters())
    with _Calls() as calls:
        maps = backbone[0](torch.zeros(1, 3, 64, 64, dtype=some.dtype, device=some.device))
    read = [id(x) for _, inputs, _ in calls.noted for x in inputs] + [id(x) for x in maps]
    made = {id(output): convs[id(inputs[1])] for name, inputs, output in calls.noted
            if name == "aten.convolution" and id(inputs[1]) in convs}
    pairs = [(made[id(inputs[0])], norms[key]) for _, inputs, _ in calls.noted for key in map(id, inputs[1:])
             if key in norms and read.count(key) == 1 and id(inputs[0]) in made and read.count(id(inputs[0])) == 1]
    return [(conv, norm) for conv, norm in pairs if read.count(id(conv.weight)) == 1]


class _Calls(TorchDispatchMode):
    """Notes the operators that run: name, tensors given, and the first result. It keeps them all: the id of a tensor
    that is gone may come again."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[tuple[str, list[Tensor], Tensor]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = function(*args, **(kwargs or {}))
        given = [x for arg in (*args, *(kwargs or {}).values())
                 for x in (arg if isinstance(arg, (list, tuple)) else [arg]) if isinstance(x, Tensor)]
        self.noted.append((str(function.overloadpacket), given, result[0] if isinstance(result, tuple) else result))
        return result
