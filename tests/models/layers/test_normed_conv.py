"""Convolutions that do the work of the frozen batch norms after them."""
import pytest
import torch
from torch import nn

from models import build_model
from models.layers.frozen_batch_norm import FrozenBatchNorm2d
from models.layers.normed_conv import (
    NormedConv2d,
    fold_batch_norms,
    foldable_pairs,
    join_batch_norms,
    prepared,
    separate_batch_norms,
)


class Following(nn.Module):
    """Two convolutions with their norms."""

    def __init__(self, bias=False):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=bias), FrozenBatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 6, 1, groups=2, bias=bias), FrozenBatchNorm2d(6)

    def forward(self, x):
        return [self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))]


@torch.no_grad()
def with_statistics(module):
    for norm in (module for module in module.modules() if isinstance(module, FrozenBatchNorm2d)):
        norm.running_mean.uniform_(-0.2, 0.2)
        norm.running_var.uniform_(0.8, 1.2)
        norm.weight.uniform_(0.8, 1.2)
        norm.bias.uniform_(-0.2, 0.2)
    return module


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("frozen", [(), ("conv1",), ("conv1", "conv2")])
def test_joined_norms_change_nothing(bias, frozen):
    """Maps, gradients and names are those of before, with the kernels computed one by one or all at once."""
    torch.manual_seed(0)
    features, images = with_statistics(Following(bias)).double(), torch.rand(2, 3, 16, 24, dtype=torch.float64)
    for name in frozen:
        getattr(features, name).requires_grad_(False)
    images.requires_grad_(len(frozen) == 2)
    state = features.state_dict()
    parts = [features.conv1.weight, features.conv2.weight, images]
    wanted = features(images)[-1]
    asked = [x for x in parts if x.requires_grad]
    gradients = torch.autograd.grad(wanted.square().sum(), asked)
    join_batch_norms(features)
    assert isinstance(features.conv1, NormedConv2d) and isinstance(features.conv2, NormedConv2d)
    assert features.norm1.joined and features.norm2.joined and features.training
    assert features.state_dict().keys() == state.keys()
    assert [name for name, _ in features.named_parameters()] == [name for name in state if "conv" in name]
    for _ in range(2):
        found = features(images)[-1]
        torch.testing.assert_close(found, wanted)
        torch.testing.assert_close(torch.autograd.grad(found.square().sum(), asked), gradients)
        with prepared(features):
            assert all(conv.kernel is not None for conv in (features.conv1, features.conv2))
            found = features(images)[-1]
        assert features.conv1.kernel is None and features.conv2.kernel is None
        torch.testing.assert_close(found, wanted)
        torch.testing.assert_close(torch.autograd.grad(found.square().sum(), asked), gradients)


def test_the_kernels_are_those_of_the_weights_as_they_are():
    """No kernel outlives a change of weights or statistics, or a loaded checkpoint."""
    torch.manual_seed(0)
    joined, plain, images = Following(), with_statistics(Following()), torch.rand(1, 3, 16, 16)
    join_batch_norms(joined)
    joined(images)
    joined.load_state_dict(plain.state_dict())
    torch.testing.assert_close(joined(images)[-1], plain(images)[-1])
    with torch.no_grad():
        for features in (joined, plain):
            features.conv2.weight.mul_(2)
            features.norm2.running_var.add_(1)
    with prepared(joined):
        torch.testing.assert_close(joined(images)[-1], plain(images)[-1])
    with pytest.raises(ZeroDivisionError), prepared(joined):
        raise ZeroDivisionError
    assert joined.conv1.kernel is None


def test_separated_norms_are_plain_again():
    torch.manual_seed(0)
    features, images = with_statistics(Following()), torch.rand(1, 3, 16, 16)
    wanted = features(images)[-1]
    join_batch_norms(features)
    separate_batch_norms(features)
    assert type(features.conv1) is nn.Conv2d and not features.norm1.joined
    assert torch.equal(features(images)[-1], wanted)


@pytest.mark.parametrize("joined", [False, True])
def test_folded_batch_norms_are_gone_and_change_nothing(tiny_config, joined):
    features = with_statistics(build_model(tiny_config)[0].backbone[0].eval().requires_grad_(False))
    if not joined:
        separate_batch_norms(features)
    images = torch.rand(1, 3, 64, 96)
    wanted = features(images)
    fold_batch_norms(features)
    assert not any(isinstance(module, (FrozenBatchNorm2d, NormedConv2d)) for module in features.modules())
    for found, expected in zip(features(images), wanted):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


class Apart(nn.Module):
    """A norm that does not follow a convolution."""
    num_channels = [4]

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), FrozenBatchNorm2d(4)

    def forward(self, x):
        return [self.norm(self.conv(x).relu())]


class ReadTwice(Apart):
    def forward(self, x):
        x = self.conv(x)
        return [self.norm(x) + x]


class Returned(Apart):
    """The convolution's output is a map too."""

    def forward(self, x):
        x = self.conv(x)
        return [x, self.norm(x)]


class RunTwice(Apart):
    """A convolution with and without a norm."""

    def forward(self, x):
        return [self.norm(self.conv(x)), self.conv(2 * x)]


class SharedNorm(Apart):
    def forward(self, x):
        return [self.norm(self.norm(self.conv(x)))]


class Standardised(nn.Conv2d):
    """As timm's StdConv2d: what it holds is not what it computes with."""

    def forward(self, x):
        return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)


class OfAnotherKind(Apart):
    def __init__(self):
        super().__init__()
        self.conv = Standardised(3, 4, 1)

    def forward(self, x):
        return [self.norm(self.conv(x))]


@pytest.mark.parametrize("kind", [Apart, ReadTwice, Returned, RunTwice, SharedNorm, OfAnotherKind])
def test_other_batch_norms_stay(kind):
    features = kind().eval()
    fold_batch_norms(features)
    assert isinstance(features.norm, FrozenBatchNorm2d)
    join_batch_norms(features)
    assert not features.norm.joined and not isinstance(features.conv, NormedConv2d)


@pytest.mark.parametrize("name, pairs", [("resnet50", 53), ("timm:tf_efficientnet_lite0", None),
                                         ("timm:resnetv2_50x1_bit", 0)])
def test_backbones_make_the_same_maps(tiny_dino, name, pairs):
    """With the norms joined, as they are built, and folded."""
    if name.startswith("timm"):
        pytest.importorskip("timm")
    features = build_model(tiny_dino(backbone=name))[0].backbone[0].eval()
    norms = [module for module in with_statistics(features).modules() if isinstance(module, FrozenBatchNorm2d)]
    joined = sum(norm.joined for norm in norms)
    separate_batch_norms(features)
    images = torch.rand(1, 3, 65, 96)
    with torch.no_grad():
        found = foldable_pairs(features)
        assert len(found) == (len(norms) if pairs is None else pairs)
        assert joined == sum(type(conv) is nn.Conv2d for conv, _ in found)  # timm has kinds that pad on their own
        wanted = features(images)
        for change in (join_batch_norms, fold_batch_norms):
            change(features.eval())
            for found, expected in zip(features.eval()(images), wanted, strict=True):
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
