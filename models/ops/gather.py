"""The operators from the most common operations, without grid_sample: for runtimes that lack it or compute it wrongly.

The four pixels around every sample are gathered as rows. Sampled keys and values are never made: the products are
taken with the pixels, and the bilinear weights are applied to the products.

B batch, Q queries, N tokens of all levels, M heads, D channels per head, L levels, P points.
"""
import torch
import torch.nn.functional as F
from torch import Tensor

from models.ops.reference import finite, without_autocast
from util.precision import at_least_float32


def key_aware_deform_attn(query: Tensor, key: Tensor, value: Tensor, spatial_shapes: list[tuple[int, int]],
                          sampling_locations: Tensor) -> Tensor:
    """See models.ops.functional."""
    with without_autocast(value):
        tokens, bilinear = corners(spatial_shapes, sampling_locations)
        values = _rows(value, tokens)
        keys = values if key is value else _rows(key, tokens)
        scaled = at_least_float32(query) * query.shape[-1] ** -0.5
        products = torch.matmul(keys, scaled[..., None]).view(bilinear.shape)
        weights = (products * bilinear).sum(-1).softmax(-1)
        return _weighted_sum(values, weights[..., None] * bilinear).to(value.dtype)


def ms_deform_attn(value: Tensor, spatial_shapes: list[tuple[int, int]], sampling_locations: Tensor,
                   attention_weights: Tensor) -> Tensor:
    """See models.ops.functional."""
    with without_autocast(value):
        tokens, bilinear = corners(spatial_shapes, sampling_locations)
        weights = attention_weights.to(bilinear.dtype).flatten(3)[..., None] * bilinear
        return _weighted_sum(_rows(value, tokens), weights).to(value.dtype)


def corners(spatial_shapes: list[tuple[int, int]], sampling_locations: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens of the four pixels around each sample and their bilinear weights, both [B, Q, M, L * P, 4], for
    sampling_locations [B, Q, M, L, P, 2]. A pixel outside its map has weight 0 and some token from 0 on."""
    locations = finite(sampling_locations)
    sizes = torch.tensor([(w, h) for h, w in spatial_shapes], dtype=locations.dtype)
    sizes = sizes.to(locations.device)[:, None]  # [L, 1, 2]
    # A place on the line of pixels beside the map has as little of the map as one farther away.
    places = torch.minimum((locations * sizes - 0.5).clamp(min=-1), sizes)
    first = places.floor()
    far = places - first
    x, y = (torch.stack([first[..., i], first[..., i] + 1], -1) for i in (0, 1))  # [B, Q, M, L, P, 2]
    weight_x, weight_y = (torch.stack([1 - far[..., i], far[..., i]], -1) for i in (0, 1))
    width, height = sizes[..., :1], sizes[..., 1:]
    weight_x = weight_x * ((x >= 0) & (x < width))
    weight_y = weight_y * ((y >= 0) & (y < height))
    starts = [0]
    for rows, columns in spatial_shapes[:-1]:
        starts.append(starts[-1] + rows * columns)
    x, y = (torch.minimum(i.clamp(min=0), size - 1).long() for i, size in ((x, width), (y, height)))
    row = y * width.long() + torch.tensor(starts).to(locations.device)[:, None, None]
    tokens = (row[..., :, None] + x[..., None, :]).clamp(min=0)
    weights = weight_y[..., :, None] * weight_x[..., None, :]
    return tokens.flatten(5).flatten(3, 4), weights.flatten(5).flatten(3, 4)


def _rows(x: Tensor, tokens: Tensor) -> Tensor:
    """The rows of x [B, N, M, D] at tokens [B, Q, M, K, 4]: [B, Q, M, K * 4, D], in at least float32."""
    batch, count, heads, channels = x.shape
    rows = at_least_float32(x).reshape(-1, channels)
    if not count:  # all maps are empty
        rows, count = F.pad(rows, (0, 0, 0, batch * heads)), 1
        tokens = torch.zeros_like(tokens)
    images, head = (torch.arange(size, device=x.device) for size in (batch, heads))
    places = (images[:, None, None, None, None] * count + tokens) * heads + head[:, None, None]
    return F.embedding(places.flatten(3), rows)


def _weighted_sum(rows: Tensor, weights: Tensor) -> Tensor:
    """[B, Q, M, K * 4, D] and [B, Q, M, K, 4] to [B, Q, M * D]."""
    return torch.matmul(weights.flatten(3)[..., None, :], rows).flatten(2)
