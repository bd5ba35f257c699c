import pytest
import torch
from torch import nn

from models.layers.deform_attn import KeyAwareDeformAttn
from models.layers.initialise import initialise_matrices


def test_matrices_are_xavier_and_the_rest_stays():
    torch.manual_seed(0)
    layer = nn.Linear(200, 100)
    bias = layer.bias.clone()
    initialise_matrices(layer)
    limit = (6 / 300) ** 0.5
    assert layer.weight.abs().max() <= limit and layer.weight.std().item() == pytest.approx(limit / 3**0.5, rel=0.02)
    assert torch.equal(layer.bias, bias)


def test_deformable_attention_keeps_its_pattern():
    attention = KeyAwareDeformAttn(8, 2, 2, 3)
    expected = attention.sampling_offsets.bias.clone()
    nn.init.normal_(attention.sampling_offsets.bias)
    initialise_matrices(nn.ModuleList([attention]))
    assert torch.equal(attention.sampling_offsets.bias, expected) and not attention.sampling_offsets.weight.any()
