"""The operators in plain PyTorch: the definition that other implementations are compared with, and the fallback.

B batch, Q queries, N tokens of all levels, M heads, D channels per head, L levels, P points.
"""
import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor

from util.precision import at_least_float32


def key_aware_deform_attn(query: Tensor, key: Tensor, value: Tensor, spatial_shapes: list[tuple[int, int]],
                          sampling_locations: Tensor) -> Tensor:
    """See models.ops.functional."""
    with without_autocast(value):
        values = sample(value, spatial_shapes, sampling_locations)
        keys = values if key is value else sample(key, spatial_shapes, sampling_locations)
        return _weighted_sum(values, key_aware_weights(query, keys)).to(value.dtype)


def key_aware_weights(query: Tensor, keys: Tensor) -> Tensor:
    """Softmax over the samples of query [B, Q, M, D] times sampled keys [B, M, D, Q, L * P]: [B, M, Q, L * P]."""
    scaled = at_least_float32(query).permute(0, 2, 3, 1) * query.shape[-1] ** -0.5  # [B, M, D, Q]
    return (scaled[..., None] * keys).sum(2).softmax(-1)


def ms_deform_attn(value: Tensor, spatial_shapes: list[tuple[int, int]], sampling_locations: Tensor,
                   attention_weights: Tensor) -> Tensor:
    """See models.ops.functional."""
    with without_autocast(value):
        values = sample(value, spatial_shapes, sampling_locations)
        weights = attention_weights.to(values.dtype).flatten(3).transpose(1, 2)
        return _weighted_sum(values, weights).to(value.dtype)


def sample(value: Tensor, spatial_shapes: list[tuple[int, int]], sampling_locations: Tensor) -> Tensor:
    """Bilinear samples of value [B, N, M, D] at sampling_locations [B, Q, M, L, P, 2]: [B, M, D, Q, L * P]."""
    value = at_least_float32(value)
    batch, _, heads, channels = value.shape
    # grid_sample makes NaN of infinite locations and takes no empty maps: these become a pixel of zeros.
    locations = finite(sampling_locations.to(value.dtype))
    grids = (2 * locations - 1).transpose(1, 2).flatten(0, 1)  # [B * M, Q, L, P, 2]
    samples = []
    for level, tokens in enumerate(value.split([h * w for h, w in spatial_shapes], 1)):
        shape = spatial_shapes[level]
        if tokens.shape[1] == 0:
            tokens, shape = F.pad(tokens, (0, 0, 0, 0, 0, 1)), (1, 1)
        maps = tokens.permute(0, 2, 3, 1).reshape(batch * heads, channels, *shape)
        samples.append(F.grid_sample(maps, grids[:, :, level], "bilinear", "zeros", align_corners=False))
    return torch.cat(samples, -1).unflatten(0, (batch, heads))


def finite(locations: Tensor) -> Tensor:
    """Locations that are NaN, infinite or far away lie outside every map."""
    return torch.where(locations.abs() < 1e9, locations, -9)


def _weighted_sum(values: Tensor, weights: Tensor) -> Tensor:
    """[B, M, D, Q, K] and [B, M, Q, K] to [B, Q, M * D]."""
    return (values * weights[:, :, None]).sum(-1).permute(0, 3, 1, 2).flatten(2)


def without_autocast(x: Tensor) -> contextlib.AbstractContextManager:
    """The meta device, where only shapes are computed, has no autocast to switch off."""
    if torch.amp.is_autocast_available(x.device.type):
        return torch.autocast(x.device.type, enabled=False)
    return contextlib.nullcontext()
