"""The two operators that models/layers/deform_attn.py calls: checks, then an implementation.

B batch, Q queries, N tokens of all levels, M heads, D channels a head, L levels, P points.
"""
from torch import Tensor

from models.ops import reference


def key_aware_deform_attn(query: Tensor, key: Tensor, value: Tensor, spatial_shapes: list[tuple[int, int]],
                          sampling_locations: Tensor) -> Tensor:
    """Key-aware deformable attention (Lite DETR, section 3.4): softmax over the sampled keys, sum of sampled values.

    query [B, Q, M, D]; key and value [B, N, M, D], N the tokens of L maps whose (H, W) are `spatial_shapes`;
    sampling_locations [B, Q, M, L, P, 2] as (x, y), the map spans [0, 1]. Returns [B, Q, M * D] in value's dtype.
    Keys and values are sampled bilinearly, zero outside the map, so a sample outside has logit 0 and keeps its
    share of the softmax. Pass the same tensor as key and value to gather once.
    Any float dtype; half precision accumulates in float32. Raises ValueError if the shapes do not fit.
    """
    _check(value, spatial_shapes, sampling_locations)
    if key.shape != value.shape or query.shape != sampling_locations.shape[:3] + value.shape[3:]:
        raise ValueError(f"query {tuple(query.shape)} and key {tuple(key.shape)} do not fit "
                         f"value {tuple(value.shape)} and sampling_locations {tuple(sampling_locations.shape)}")
    return reference.key_aware_deform_attn(query, key, value, spatial_shapes, sampling_locations)


def ms_deform_attn(value: Tensor, spatial_shapes: list[tuple[int, int]], sampling_locations: Tensor,
                   attention_weights: Tensor) -> Tensor:
    """Multi-scale deformable attention (Deformable DETR, eq. 3): weighted sum of sampled values.

    value [B, N, M, D]; sampling_locations [B, Q, M, L, P, 2] as (x, y), the map spans [0, 1]; attention_weights
    [B, Q, M, L, P]. Returns [B, Q, M * D] in value's dtype. Values are zero outside the map.
    Any float dtype; half precision accumulates in float32. Raises ValueError if the shapes do not fit.
    """
    _check(value, spatial_shapes, sampling_locations)
    if attention_weights.shape != sampling_locations.shape[:-1]:
        raise ValueError(f"attention_weights {tuple(attention_weights.shape)} do not fit "
                         f"sampling_locations {tuple(sampling_locations.shape)}")
    return reference.ms_deform_attn(value, spatial_shapes, sampling_locations, attention_weights)


def _check(value: Tensor, spatial_shapes: list[tuple[int, int]], sampling_locations: Tensor) -> None:
    tokens = sum(h * w for h, w in spatial_shapes)
    if value.dim() != 4 or value.shape[1] != tokens:
        raise ValueError(f"value {tuple(value.shape)} must be [B, N, M, D] with the N = {tokens} tokens "
                         f"of the maps {spatial_shapes}")
    batch, _, heads, levels, _, last = sampling_locations.shape if sampling_locations.dim() == 6 else (-1,) * 6
    if (batch, heads, levels, last) != (value.shape[0], value.shape[2], len(spatial_shapes), 2):
        raise ValueError(f"sampling_locations {tuple(sampling_locations.shape)} must be [B, Q, M, L, P, 2] "
                         f"for value {tuple(value.shape)} and {len(spatial_shapes)} maps")
