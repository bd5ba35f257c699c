"""Convolutions that do the work of the addition and the activation after them."""
import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from models.backbones.resnet import ResNet
from models.backbones.swin import build_swin
from models.layers.fused_conv import KNOWN, FusedConv2d, fuse_convolutions
from models.layers.normed_conv import fold_batch_norms
from util.options import BackboneOptions

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")
SIZES = (2, 64, 96), (1, 97, 70), (1, 64, 96)


class Operators(TorchDispatchMode):
    """The names of the operators that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def operators(module, x):
    """The names of those that a call runs, but for views."""
    with Operators() as ran:
        module(x)
    return [name for name in ran.names if name not in ("view", "_unsafe_view", "t", "transpose", "detach")]


def check_equal(fused, features):
    """The maps of several images, twice, and the images are left as they are."""
    with torch.inference_mode():
        for batch, height, width in SIZES:
            images = torch.rand(batch, 3, height, width)
            before, wanted = images.clone(), features(images.clone())
            for _ in range(2):
                for value, expected in zip(fused(images), wanted, strict=True):
                    torch.testing.assert_close(value, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
            assert torch.equal(images, before)


def fused_convs(features):
    return [module for module in features.modules() if isinstance(module, FusedConv2d)]


@pytest.mark.parametrize("name, convs", [("resnet18", 20), ("resnet50", 53)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_resnet_is_convolutions_and_one_pooling(name, convs, memory_format):
    torch.manual_seed(0)
    features = ResNet(name, [0, 1, 2, 3]).eval().requires_grad_(False)  # all stages' maps are residuals, too
    fold_batch_norms(features)
    fused = fuse_convolutions(features).to(memory_format=memory_format)
    assert len(fused_convs(fused)) == convs and not fused.training
    check_equal(fused, features)
    with torch.inference_mode():
        names = operators(fused, torch.rand(1, 3, 64, 64))
    assert {name for name in names if "pool" not in name} == {"_convolution_pointwise", "_convolution_pointwise_"}
    assert len(names) == convs + 1


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "efficientnet_b0", "mobilenetv3_small_050", "convnext_atto"])
def test_backbones_of_timm(name):
    pytest.importorskip("timm")
    from models.backbones.timm import TimmBackbone

    torch.manual_seed(0)
    features = TimmBackbone(name, [1, 2, 3])
    features.finish()
    features.eval().requires_grad_(False)
    fold_batch_norms(features)
    fused = fuse_convolutions(features)
    assert len(fused_convs(fused)) > 20
    check_equal(fused, features)


def test_what_cannot_be_traced_stays_as_it_is():
    features = build_swin(BackboneOptions("swin_T_224_1k", [3], pretrained_backbone=False))
    assert fuse_convolutions(features) is features


class Block(nn.Module):
    """A residual block whose parts are given. after: of the addition."""

    def __init__(self, activation=nn.Identity, after=nn.Identity, **options):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.conv = nn.Conv2d(4, 4, 3, padding=1, **options)
        self.activation, self.after = activation(), after()

    def forward(self, x):
        x = self.stem(x)
        return [self.after(self.activation(self.conv(x)) + x)]


@pytest.mark.parametrize("activation", [*KNOWN, nn.GELU])
def test_activations(activation):
    torch.manual_seed(0)
    features = Block(activation).eval()
    fused = fuse_convolutions(copy.deepcopy(features))
    check_equal(fused, features)
    with torch.inference_mode():
        assert len(operators(fused, torch.rand(1, 3, 64, 64))) == {nn.Identity: 2, nn.GELU: 4}.get(activation, 3)


@pytest.mark.parametrize("after", [nn.Identity, nn.ReLU, nn.ReLU6])
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"groups": 2}, {"padding_mode": "reflect"}])
def test_activations_after_an_addition(after, options):
    torch.manual_seed(0)
    features = Block(after=after, **options).eval()
    check_equal(fuse_convolutions(copy.deepcopy(features)), features)


class Traps(nn.Module):
    """What must not be fused, or not in place."""

    def __init__(self):
        super().__init__()
        self.stem, self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.pooled, self.shared, self.relu = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.ReLU()
        self.last = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = self.stem(x)
        kept = self.one(x) + x  # x is read again
        twice = self.two(kept)
        broadcast = self.pooled(kept.mean((2, 3), keepdim=True)) + x
        shared = self.relu(self.shared(x)) + self.shared(broadcast)
        scaled = torch.add(self.last(kept), x, alpha=2)
        return [x, kept, self.relu(twice) + twice, broadcast, shared, scaled]


def test_nothing_else_is_fused():
    torch.manual_seed(0)
    features = Traps().eval()
    check_equal(fuse_convolutions(copy.deepcopy(features)), features)


def test_an_exported_graph_has_plain_operators():
    torch.manual_seed(0)
    features = Block(nn.ReLU, nn.ReLU).eval().requires_grad_(False)
    fused, images = fuse_convolutions(copy.deepcopy(features)), torch.rand(1, 3, 64, 64)
    program = torch.export.export(fused, (images,))
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert called and all(name.startswith("aten.") for name in called), called
    torch.testing.assert_close(program.module()(images), features(images))
