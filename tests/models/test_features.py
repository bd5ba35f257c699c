"""Further levels by convolution, and level embeddings, are tested with DINO, which has both."""
import torch
from torch import nn

from models.features import multi_scale_features
from util.nested_tensor import NestedTensor


class Backbone(nn.Module):
    """Maps of strides 2 and 4 with the image's first channel."""

    def forward(self, samples):
        maps = [NestedTensor(samples.tensors[:, :1, ::s, ::s], samples.mask[:, ::s, ::s]) for s in (2, 4)]
        return maps, [torch.zeros_like(m.tensors) for m in maps]


def test_one_projection_a_map():
    samples = NestedTensor.from_list([torch.randn(3, 8, 12), torch.randn(3, 8, 4)])
    projections = nn.ModuleList(nn.Conv2d(1, 1, 1) for _ in range(2))
    features = multi_scale_features(samples, Backbone(), projections)
    assert features.shapes == [(4, 6), (2, 3)]
    for tokens, step, proj in zip(features.tokens.split([24, 6], 1), (2, 4), projections, strict=True):
        torch.testing.assert_close(tokens, proj(samples.tensors[:, :1, ::step, ::step]).flatten(2).transpose(1, 2))
    assert features.padding.sum(1).tolist() == [0, 4 * 4 + 2 * 2]
    assert not features.pos.any()
