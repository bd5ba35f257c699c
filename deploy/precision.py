"""Changes to a detector that its exported graph keeps: half precision without autocast, and folded norms."""
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.backbones import Backbone
from models.detector import Detector
from models.layers.frozen_batch_norm import FrozenBatchNorm2d

# What ends in coordinates or scores: the box and class heads, and Deformable DETR's reference points.
IN_FLOAT32 = {"class_embed", "bbox_embed", "enc_out_class_embed", "enc_out_bbox_embed", "reference_points"}
CASTING = (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.GroupNorm, nn.MultiheadAttention)


def to_half(model: Detector, dtype: torch.dtype) -> None:
    """Changes a model in place, so that it computes in half precision without autocast: weights and what passes between
    the modules. Coordinates, scores and the softmax over samples stay in float32."""
    for name, module in model.named_modules():
        own = torch.float32 if IN_FLOAT32.intersection(name.split(".")) else dtype
        for parameter in module.parameters(recurse=False):
            parameter.data = parameter.data.to(own)
        if isinstance(module, CASTING):
            module.register_forward_pre_hook(_Cast(own), with_kwargs=True)
        if name.endswith("attention_weights"):
            module.register_forward_hook(lambda module, inputs, output: output.float())


class _Cast:
    """Gives a module its arguments in one dtype."""

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return tuple(map(self._cast, args)), {name: self._cast(value) for name, value in kwargs.items()}

    def _cast(self, value: Any) -> Any:
        return value.to(self.dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


class SameConv(nn.Conv2d):
    """TensorFlow's "same" padding for stride 2: it begins one pixel further left and above where the side is odd. A
    graph for any image size must not decide on that, as timm's Conv2dSame does: the padding here is always the same,
    and where the image begins in it follows from the size."""

    def forward(self, x: Tensor) -> Tensor:
        (rows, columns), (height, width) = self.kernel_size, x.shape[-2:]
        padded = F.pad(x, ((columns - 1) // 2, (columns + 1) // 2, (rows - 1) // 2, (rows + 1) // 2))
        window = padded.narrow(2, 1 - height % 2, height + rows - 1).narrow(3, 1 - width % 2, width + columns - 1)
        return F.conv2d(window, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def simplify_padding(backbone: Backbone) -> None:
    """Makes SameConv of the convolutions that it can stand for, in place."""
    for module in backbone.modules():
        if (type(module).__name__ == "Conv2dSame" and isinstance(module, nn.Conv2d) and module.stride == (2, 2)
                and module.dilation == (1, 1) and all(side >= 3 and side % 2 for side in module.kernel_size)):
            module.__class__ = SameConv  # with all its weights and hooks


@torch.no_grad()
def fold_batch_norms(backbone: Backbone) -> None:
    """Moves each frozen batch norm whose input is a convolution's output into that convolution, in place."""
    made: dict[int, nn.Conv2d] = {}
    kept, hooks = [], []  # kept: the ids of tensors that are gone may come again
    pairs: list[tuple[nn.Conv2d, FrozenBatchNorm2d]] = []

    def note_output(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        made[id(output)] = module
        kept.append(output)

    def note_input(module: nn.Module, inputs: tuple) -> None:
        assert isinstance(module, FrozenBatchNorm2d)
        if id(inputs[0]) in made:
            pairs.append((made.pop(id(inputs[0])), module))

    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(note_output))
        elif isinstance(module, FrozenBatchNorm2d):
            hooks.append(module.register_forward_pre_hook(note_input))
    backbone[0](torch.zeros(1, 3, 64, 64))
    for hook in hooks:
        hook.remove()
    names = {module: name for name, module in backbone.named_modules()}
    for conv, norm in pairs:
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        bias = (0 if conv.bias is None else conv.bias) - norm.running_mean
        conv.weight.data = conv.weight * scale[:, None, None, None]
        conv.bias = nn.Parameter(bias * scale + norm.bias, requires_grad=False)
        parent, _, name = names[norm].rpartition(".")
        setattr(backbone.get_submodule(parent), name, norm.after or nn.Identity())
