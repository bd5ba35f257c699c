"""Convolutions that do the work of the frozen batch norms after them, which saves a pass over each map."""
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from models.layers.frozen_batch_norm import FrozenBatchNorm2d

Kernel = tuple[Tensor, Tensor]  # weight and bias of a convolution


class NormedConv2d(nn.Conv2d):
    """A convolution with the parameters of `conv`, which are trained as before, and with the norm that follows it.

    Both keep their places and names in the model: the norm is `joined`, and passes on what it is given.
    """

    def __init__(self, conv: nn.Conv2d, norm: FrozenBatchNorm2d):
        super().__init__(**_arguments(conv))
        self.weight, self.bias = conv.weight, conv.bias
        self.norms = (norm,)  # a tuple: its buffers have names elsewhere
        self.kernel: Kernel | None = None  # see `prepared`
        self.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        if self.kernel is None:  # as in a graph that is exported or compiled, which needs no fewer operators
            return self.norms[0].normalized(super().forward(x))
        return self._conv_forward(x, *self.kernel)


def normed_kernels(convs: Sequence[NormedConv2d]) -> list[Kernel]:
    """Weights and biases with which plain convolutions give the same maps; of many, in as few calls as of one."""
    norms = [conv.norms[0] for conv in convs]
    deviations = torch._foreach_sqrt(torch._foreach_add([norm.running_var for norm in norms],
                                                        [norm.eps for norm in norms]))
    scales = torch._foreach_div([norm.weight for norm in norms], deviations)
    means = [norm.running_mean if conv.bias is None else norm.running_mean - conv.bias
             for conv, norm in zip(convs, norms)]
    shifts = torch._foreach_addcmul([norm.bias for norm in norms], means, scales, value=-1.0)
    weights = torch._foreach_mul([conv.weight for conv in convs], [scale[:, None, None, None] for scale in scales])
    return list(zip(weights, shifts))


@contextmanager
def prepared(features: nn.Module) -> Iterator[None]:
    """Computes the kernels of all NormedConv2d of a model at once, for the forward pass inside this context."""
    convs = [module for module in features.modules() if isinstance(module, NormedConv2d)]
    trained = [conv for conv in convs if conv.weight.requires_grad]  # apart: what is made at once has one graph
    frozen = [conv for conv in convs if not conv.weight.requires_grad]
    try:
        for group in (trained, frozen):
            for conv, kernel in zip(group, normed_kernels(group) if group else []):
                conv.kernel = kernel  # assigned from outside: only here
        yield
    finally:
        for conv in convs:
            conv.kernel = None  # assigned from outside: only here


def join_batch_norms(features: nn.Module) -> None:
    """Makes a NormedConv2d, in place, of every plain convolution with a frozen batch norm that alone reads its output.
    features: a new backbone, images [B, 3, H, W] to maps, which is then in training mode."""
    names = {module: name for name, module in features.named_modules()}
    for conv, norm in foldable_pairs(features.eval()):
        if type(conv) is nn.Conv2d:
            norm.joined = True  # assigned from outside: only here
            _replace(features, names[conv], NormedConv2d(conv, norm))
    features.train()


@torch.no_grad()
def fold_batch_norms(features: nn.Module) -> None:
    """Moves each frozen batch norm that alone reads a convolution's output into that convolution's weights, in place.
    The weights are then no longer those that were trained."""
    separate_batch_norms(features)
    names = {module: name for name, module in features.named_modules()}
    for conv, norm in foldable_pairs(features):
        scale = norm.weight.double() * (norm.running_var.double() + norm.eps).rsqrt()
        shift = (0 if conv.bias is None else conv.bias.double()) - norm.running_mean.double()
        kind = conv.weight.dtype
        weight = (conv.weight.double() * scale[:, None, None, None]).to(kind)
        bias = nn.Parameter((shift * scale + norm.bias.double()).to(kind), requires_grad=False)
        conv.weight.data = weight  # assigned from outside: it is no layer of this project
        conv.bias = bias  # assigned from outside: it is no layer of this project
        _replace(features, names[norm], norm.after or nn.Identity().train(norm.training))


def separate_batch_norms(features: nn.Module) -> None:
    """Undoes join_batch_norms, in place."""
    for name, module in list(features.named_modules()):
        if isinstance(module, NormedConv2d):
            module.norms[0].joined = False  # assigned from outside: only here
            conv = nn.Conv2d(**_arguments(module)).train(module.training)
            conv.weight, conv.bias = module.weight, module.bias  # assigned from outside: it is no layer of this project
            _replace(features, name, conv)


def foldable_pairs(features: nn.Module) -> list[tuple[nn.Conv2d, FrozenBatchNorm2d]]:
    """Convolutions and the frozen batch norms that read their outputs, where each runs once and nothing else does."""
    convs = {id(m.weight): m for m in features.modules() if isinstance(m, nn.Conv2d)}
    norms = {id(m.weight): m for m in features.modules() if isinstance(m, FrozenBatchNorm2d)}
    if not norms:
        return []
    some = next(features.parameters())
    with torch.no_grad(), _Calls() as calls:
        maps = features(torch.zeros(1, 3, 64, 64, dtype=some.dtype, device=some.device))
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


def _arguments(conv: nn.Conv2d) -> dict[str, Any]:
    """Of nn.Conv2d, for one of the same shape that gets its parameters later."""
    same = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    return {name: getattr(conv, name) for name in same} | {"bias": conv.bias is not None, "device": "meta"}


def _replace(features: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(features.get_submodule(parent), own, module)
