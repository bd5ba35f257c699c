import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import build_model
from models.backbones import Backbone
from models.inference import fold_batch_norms, to_half
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
