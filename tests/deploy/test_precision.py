import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from deploy.precision import SameConv, fold_batch_norms, simplify_padding, to_half
from models import build_model
from models.backbones import Backbone
from models.layers.frozen_batch_norm import FrozenBatchNorm2d


@pytest.fixture
def model(tiny_config):
    """With batch norms that do something."""
    model = build_model(tiny_config)[0].eval().requires_grad_(False)
    for norm in (module for module in model.modules() if isinstance(module, FrozenBatchNorm2d)):
        for buffer in norm.buffers():
            buffer.copy_(torch.rand_like(buffer) + 0.5)
    return model


def test_folded_batch_norms_are_gone_and_change_nothing(model):
    images = torch.rand(1, 3, 64, 96)
    wanted = model.backbone[0](images)
    fold_batch_norms(model.backbone)
    assert not any(isinstance(module, FrozenBatchNorm2d) for module in model.modules())
    for found, expected in zip(model.backbone[0](images), wanted):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


class Apart(nn.Module):
    """A norm that does not follow a convolution."""
    num_channels = [4]

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), FrozenBatchNorm2d(4)

    def forward(self, x):
        return [self.norm(self.conv(x).relu())]


def test_other_batch_norms_stay():
    backbone = Backbone(Apart(), nn.Identity())
    fold_batch_norms(backbone)
    assert isinstance(backbone[0].norm, FrozenBatchNorm2d)


@pytest.mark.parametrize("kernel", [3, 5, (3, 7)])
@pytest.mark.parametrize("size", [(8, 9), (7, 6), (1, 2)])
def test_padding_is_that_of_timm(kernel, size):
    conv2d_same = pytest.importorskip("timm.layers.conv2d_same")
    conv = conv2d_same.Conv2dSame(2, 3, kernel, stride=2)
    wrapped = nn.Sequential(conv)
    images = torch.rand(1, 2, *size)
    wanted = wrapped(images)
    simplify_padding(wrapped)
    assert isinstance(wrapped[0], SameConv)
    torch.testing.assert_close(wrapped(images), wanted)


def test_a_graph_for_any_size_is_right_whatever_the_sides_of_its_example():
    """Whether a side is odd decides where timm's padding begins, on every level anew."""
    conv2d_same = pytest.importorskip("timm.layers.conv2d_same")
    convs = nn.Sequential(*(conv2d_same.Conv2dSame(1, 1, kernel, stride=2) for kernel in (3, 5, 3)))
    expected = copy.deepcopy(convs)
    simplify_padding(convs)
    side = torch.export.Dim.DYNAMIC
    example = (torch.rand(1, 1, 20, 44),)
    program = torch.export.export(convs, example, dynamic_shapes=({2: side, 3: side},), strict=False)
    for size in ((20, 44), (21, 43), (22, 42), (24, 40), (61, 90)):
        images = torch.rand(1, 1, *size)
        torch.testing.assert_close(program.module()(images), expected(images))


def test_other_convolutions_stay():
    conv2d_same = pytest.importorskip("timm.layers.conv2d_same")
    convs = nn.Sequential(nn.Conv2d(2, 3, 3, stride=2), conv2d_same.Conv2dSame(3, 3, 2, stride=2),
                          conv2d_same.Conv2dSame(3, 3, 3, stride=3),
                          conv2d_same.Conv2dSame(3, 3, 3, stride=2, dilation=2))
    kinds = [type(conv) for conv in convs]
    simplify_padding(convs)
    assert [type(conv) for conv in convs] == kinds


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_computes_coordinates_and_scores_in_float32(model, dtype):
    half = copy.deepcopy(model)
    fold_batch_norms(half.backbone)
    to_half(half, dtype)
    kinds = {name: parameter.dtype for name, parameter in half.named_parameters()}
    heads = [name for name in kinds if "class_embed" in name or "bbox_embed" in name]
    assert heads and all(kinds.pop(name) == torch.float32 for name in heads)
    assert set(kinds.values()) == {dtype}
    seen = {}
    for name, module in half.named_modules():
        if name.endswith(("sampling_offsets", "attention_weights", "linear1", "class_embed.0", "bbox_embed.0")):
            module.register_forward_hook(lambda module, inputs, output, name=name: seen.update({name: output.dtype}))
    images = torch.rand(1, 3, 96, 96)
    found = half(images.to(dtype))
    for name, kind in seen.items():
        assert kind == (torch.float32 if name.endswith(("attention_weights", "embed.0")) else dtype), name
    assert {"sampling_offsets", "linear1", "0"} <= {name.rpartition(".")[2] for name in seen}
    assert found["pred_logits"].dtype == found["pred_boxes"].dtype == torch.float32
    assert F.mse_loss(found["pred_logits"], model(images)["pred_logits"]) < 0.1
