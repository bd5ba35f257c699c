"""Convolutions that do the work of the addition and the activation after them, which saves passes over each map."""
import operator
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from models.layers.onednn import fusable

# Activations as oneDNN knows them: name and numbers.
KNOWN: dict[type[nn.Module], tuple[str, list[float]]] = {
    nn.Identity: ("none", []), nn.ReLU: ("relu", []), nn.ReLU6: ("hardtanh", [0.0, 6.0]), nn.SiLU: ("swish", []),
    nn.Hardswish: ("hardswish", [])}
AFTER_ADDITION = nn.Identity, nn.ReLU  # of these
ADDITIONS: tuple[Callable, ...] = (operator.add, operator.iadd, torch.add)


class FusedConv2d(nn.Conv2d):
    """activation(conv(x) + added); on a CPU in one kernel, which is torch.compile's. For detection only.

    overwrites: the result takes the place of `added`.
    """

    def __init__(self, conv: nn.Conv2d, activation: nn.Module, overwrites: bool = False):
        super().__init__(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride,  # type: ignore[arg-type]
                         conv.padding, conv.dilation, conv.groups, conv.bias is not None,  # type: ignore[arg-type]
                         device="meta")
        self.weight, self.bias = conv.weight, conv.bias
        self.activation, self.overwrites = activation, overwrites
        self.train(conv.training)

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """x [B, C, H, W]; added as the result, [B, C', H', W']."""
        if not fusable(x):
            result = super().forward(x)
            return self.activation(result if added is None else result + added)
        name, numbers = KNOWN[type(self.activation)]
        shape = self.padding, self.stride, self.dilation, self.groups
        kernel = torch.ops.mkldnn
        if added is None:
            return kernel._convolution_pointwise(x, self.weight, self.bias, *shape, name, numbers, "")
        last = "add", 1.0, None if name == "none" else name, numbers, ""
        if self.overwrites:
            return kernel._convolution_pointwise_.binary(added, x, self.weight, self.bias, *shape, *last)
        return kernel._convolution_pointwise.binary(x, added, self.weight, self.bias, *shape, *last)


class _Tracer(fx.Tracer):
    """For which convolutions are whole: those of timm that pad by the map's size cannot be looked into."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.Conv2d) or super().is_leaf_module(m, module_qualified_name)


def fuse_convolutions(features: nn.Module) -> nn.Module:
    """A backbone with the modules of the given one, but for its plain convolutions, which are FusedConv2d. One that
    torch.fx cannot trace, since its steps depend on the image's size, is returned as it is."""
    try:
        traced = fx.GraphModule(features, _Tracer().trace(features))
    except (fx.proxy.TraceError, TypeError):
        return features
    some = next(features.parameters())
    ShapeProp(traced).propagate(torch.zeros(1, 3, 64, 96, dtype=some.dtype, device=some.device))
    for node in list(traced.graph.nodes):
        if isinstance(_module(traced, node), nn.Identity):
            node.replace_all_uses_with(node.args[0])
            traced.graph.erase_node(node)
    called = Counter(node.target for node in traced.graph.nodes)
    for node in list(traced.graph.nodes):
        conv = _module(traced, node)
        if type(conv) is nn.Conv2d and conv.padding_mode == "zeros" and called[node.target] == 1:
            _fuse(traced, node, conv)
    traced.recompile()
    return traced.train(features.training)


def _fuse(traced: fx.GraphModule, node: fx.Node, conv: nn.Conv2d) -> None:
    """Replaces a convolution, an addition that alone reads it, and an activation that alone reads the result."""
    parts, added, activation = [node], None, None
    user = _only_user(node)
    if user is not None and _adds_equals(user, node):
        added = next(x for x in user.all_input_nodes if x is not node)
        parts.append(user)
    user = _only_user(parts[-1])
    if user is not None and type(_module(traced, user)) in (KNOWN if added is None else AFTER_ADDITION):
        activation = _module(traced, user)
        parts.append(user)
    overwrites = added is not None and isinstance(_module(traced, added), nn.Conv2d) and _read_before(added, parts[-1])
    name = str(node.target)
    traced.add_submodule(name, FusedConv2d(conv, activation or nn.Identity(), overwrites))
    with traced.graph.inserting_before(parts[-1]):
        whole = traced.graph.call_module(name, node.args if added is None else (*node.args, added))
    whole.meta = parts[-1].meta  # assigned from outside: it is no layer; the shape, for a later addition
    parts[-1].replace_all_uses_with(whole)
    for part in reversed(parts):
        traced.graph.erase_node(part)


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _module(traced: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return traced.get_submodule(str(node.target)) if node.op == "call_module" else None


def _adds_equals(addition: fx.Node, node: fx.Node) -> bool:
    """Whether it adds another tensor to that of `node`, of the same shape, and changes no other in place."""
    tensors = addition.all_input_nodes
    return (addition.target in ADDITIONS and len(tensors) == 2 and not addition.kwargs
            and tensors[0].meta["tensor_meta"].shape == tensors[1].meta["tensor_meta"].shape
            and (addition.target is not operator.iadd or tensors[0] is node))


def _read_before(tensor: fx.Node, last: fx.Node) -> bool:
    """Whether nothing after the node `last` reads a tensor."""
    nodes = list(tensor.graph.nodes)
    return all(nodes.index(user) <= nodes.index(last) for user in tensor.users)
