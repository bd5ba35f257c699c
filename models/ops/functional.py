"""The two operators that models/layers/deform_attn.py calls: checks, then an implementation.

`native` is the compiled one (models/ops/src), `torch` the plain one (reference.py), `auto`, the default, takes native
where it is built for the tensors' device. The environment variable DEFORM_ATTN_IMPL sets another one for the process.

B batch, Q queries, N tokens of all levels, M heads, D channels a head, L levels, P points.
"""
import contextlib
import functools
import os
import warnings
from collections.abc import Iterator
from types import ModuleType

import torch
from torch import Tensor

from models.ops import native, reference
from util.errors import UserError

IMPLEMENTATIONS = ("auto", "native", "torch")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_chosen = os.environ.get("DEFORM_ATTN_IMPL", "auto")


@contextlib.contextmanager
def implementation(name: str) -> Iterator[None]:
    """Inside this context the operators run as `name`: "auto", "native" or "torch"."""
    global _chosen
    before, _chosen = _chosen, name
    try:
        yield
    finally:
        _chosen = before


def key_aware_deform_attn(query: Tensor, key: Tensor, value: Tensor, spatial_shapes: list[tuple[int, int]],
                          sampling_locations: Tensor) -> Tensor:
    """Key-aware deformable attention (Lite DETR, section 3.4): softmax over the sampled keys, sum of sampled values.

    query [B, Q, M, D]; key and value [B, N, M, D], N the tokens of L maps whose (H, W) are `spatial_shapes`;
    sampling_locations [B, Q, M, L, P, 2] as (x, y), the map spans [0, 1]. Returns [B, Q, M * D] in value's dtype.
    Keys and values are sampled bilinearly, zero outside the map, so a sample outside (NaN and infinity too) has logit
    0 and keeps its share of the softmax; logits are scaled by D ** -0.5. Pass the same tensor as key and value to
    gather once.

    query, key and value have one dtype: float32, float64, or half precision, which accumulates in float32; autocast
    gives them its own. Locations are computed with in float32 (float64 for float64) whatever their dtype.
    Raises ValueError, naming the argument, if shapes, dtypes or devices do not fit.
    """
    shared = key is value
    query, value = _autocast(query), _autocast(value)
    key = value if shared else _autocast(key)
    locations = _check(value, spatial_shapes, sampling_locations)
    _fits("query", query, value, (*locations.shape[:3], value.shape[3]))
    _fits("key", key, value, value.shape)
    return _serving(value).key_aware_deform_attn(query, key, value, spatial_shapes, locations)


def ms_deform_attn(value: Tensor, spatial_shapes: list[tuple[int, int]], sampling_locations: Tensor,
                   attention_weights: Tensor) -> Tensor:
    """Multi-scale deformable attention (Deformable DETR, eq. 3): weighted sum of sampled values.

    value [B, N, M, D], N the tokens of L maps whose (H, W) are `spatial_shapes`; sampling_locations
    [B, Q, M, L, P, 2] as (x, y), the map spans [0, 1]; attention_weights [B, Q, M, L, P]. Returns [B, Q, M * D] in
    value's dtype. Values are zero outside the map.

    value is float32, float64, or half precision, which accumulates in float32; autocast gives it its own dtype.
    Locations and weights are computed with in float32 (float64 for float64) whatever their dtype.
    Raises ValueError, naming the argument, if shapes, dtypes or devices do not fit.
    """
    value = _autocast(value)
    locations = _check(value, spatial_shapes, sampling_locations)
    if not attention_weights.is_floating_point():
        raise ValueError(f"attention_weights are {attention_weights.dtype}, they must be a floating point tensor")
    weights = attention_weights.to(locations.dtype)
    _fits("attention_weights", weights, locations, locations.shape[:-1])
    return _serving(value).ms_deform_attn(value, spatial_shapes, locations, weights)


def _serving(value: Tensor) -> ModuleType:
    """The implementation for tensors like value."""
    if _chosen not in IMPLEMENTATIONS:
        raise UserError(f"DEFORM_ATTN_IMPL={_chosen!r} must be one of {', '.join(IMPLEMENTATIONS)}")
    if _chosen == "torch" or (_chosen == "auto" and value.device.type not in ("cpu", "cuda", "meta")):
        return reference
    if native.available(value.device.type):
        return native
    if _chosen == "native":
        raise UserError(_missing(value.device.type))
    if not torch.compiler.is_compiling():
        _warn_once(value.device.type)
    return reference


def _missing(device_type: str) -> str:
    problem = native.problem or f"the compiled operators were built without {device_type}"
    return f"{problem}; build them with: {native.BUILD_COMMAND}"


@functools.cache
def _warn_once(device_type: str) -> None:
    warnings.warn(f"Deformable attention runs in plain PyTorch, which is slow: {_missing(device_type)}", stacklevel=4)


def _autocast(x: Tensor) -> Tensor:
    device = x.device.type
    fixed = x.dtype == torch.float64 or not x.is_floating_point()
    if fixed or device == "meta" or not torch.is_autocast_enabled(device):
        return x
    return x.to(torch.get_autocast_dtype(device))


def _check(value: Tensor, spatial_shapes: list[tuple[int, int]], locations: Tensor) -> Tensor:
    """Raises ValueError unless value, shapes and locations fit; returns the locations in the accumulation dtype."""
    tokens = sum(h * w for h, w in spatial_shapes)
    if any(size < 0 for shape in spatial_shapes for size in shape):
        raise ValueError(f"spatial_shapes {spatial_shapes} must not be negative")
    if value.dim() != 4 or value.shape[1] != tokens:
        raise ValueError(f"value {tuple(value.shape)} must be [B, N, M, D] with the N = {tokens} tokens "
                         f"of spatial_shapes {spatial_shapes}")
    if value.dtype not in DTYPES:
        raise ValueError(f"value is {value.dtype}, it must be float32, float64, float16 or bfloat16")
    if locations.dim() != 6 or not locations.is_floating_point():
        raise ValueError(f"sampling_locations {tuple(locations.shape)}, {locations.dtype}, must be a floating point "
                         "tensor [B, Q, M, L, P, 2]")
    batch, _, heads, levels, _, last = locations.shape
    if (batch, heads, levels, last) != (value.shape[0], value.shape[2], len(spatial_shapes), 2):
        raise ValueError(f"sampling_locations {tuple(locations.shape)} must be [B, Q, M, L, P, 2] "
                         f"for value {tuple(value.shape)} and {len(spatial_shapes)} maps")
    if locations.device != value.device:
        raise ValueError(f"sampling_locations are on {locations.device}, value is on {value.device}")
    return locations.to(torch.promote_types(value.dtype, torch.float32))


def _fits(name: str, x: Tensor, like: Tensor, shape: tuple[int, ...]) -> None:
    if x.shape != shape:
        raise ValueError(f"{name} {tuple(x.shape)} must have shape {tuple(shape)}")
    if x.dtype != like.dtype:
        raise ValueError(f"{name} is {x.dtype}, it must be {like.dtype}")
    if x.device != like.device:
        raise ValueError(f"{name} is on {x.device}, value is on {like.device}")
