"""From images to the tokens of all levels.

L levels, C channels.
"""
from collections.abc import Sequence

from torch import Tensor, nn

from models.backbones import Backbone
from models.structures import FlatFeatures
from util.nested_tensor import NestedTensor, resize_mask


def multi_scale_features(samples: NestedTensor, backbone: Backbone, input_proj: Sequence[nn.Module] | nn.ModuleList,
                         level_embed: Tensor | None = None) -> FlatFeatures:
    """The backbone's maps through one projection each; further projections make coarser levels, the first of them from
    the backbone's last map, the others from the level before. level_embed [L, C] distinguishes the levels.
    """
    maps, positions = backbone(samples)
    projected = [NestedTensor(proj(m.tensors), m.mask) for proj, m in zip(input_proj, maps)]
    source = maps[-1].tensors
    for proj in list(input_proj)[len(maps):]:
        source = proj(source)
        projected.append(NestedTensor(source, resize_mask(samples.mask, source.shape[-2:])))
        positions.append(backbone.position(projected[-1]))
    return FlatFeatures.flatten(projected, positions, level_embed)
