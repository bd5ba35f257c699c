"""The two operators that models/layers/deform_attn.py calls: checks, then an implementation.

`native` is the compiled one (models/ops/src), `torch` the plain one (reference.py), `gather` one for exported files
(gather.py); `auto`, the default, chooses native where it is built for the tensors' device and supports the call, else
torch. The environment variable DEFORM_ATTN_IMPL sets another default for the process.

B batch, Q queries, N tokens of all levels, M heads, D channels per head, L levels, P points.
"""
import contextlib
import functools
import os
import warnings
from collections.abc import Iterator
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd import forward_ad

from models.ops import gather, native, reference
from util.errors import UserError

IMPLEMENTATIONS = ("auto", "native", "torch", "gather")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_chosen = os.environ.get("DEFORM_ATTN_IMPL", "auto")


@contextlib.contextmanager
def implementation(name: str) -> Iterator[None]:
    """Inside this context the operators run as `name`, one of IMPLEMENTATIONS. Raises UserError for any other."""
    global _chosen
    if name not in IMPLEMENTATIONS:
        raise UserError(f"there is no implementation {name!r}, only {', '.join(IMPLEMENTATIONS)}")
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
    gather once. Key and value must be finite: natively, a sample outside reads the map's border with weight 0.

    query, key and value have one dtype: float32, float64, or half precision, which accumulates in float32; autocast
    gives them its own. Locations are computed with in float32 (float64 for float64) whatever their dtype.
    Raises ValueError, naming the argument, if shapes, dtypes or devices do not fit.
    """
    key_is_value = key is value
    query, value = _autocast(query), _autocast(value)
    key = value if key_is_value else _autocast(key)
    locations = _check(value, spatial_shapes, sampling_locations)
    _fits("query", query, value, (*locations.shape[:3], value.shape[3]))
    _fits("key", key, value, value.shape)
    chosen = _implementation_for(len(spatial_shapes), query, key, value, locations)
    return chosen.key_aware_deform_attn(query, key, value, spatial_shapes, locations)


def ms_deform_attn(value: Tensor, spatial_shapes: list[tuple[int, int]], sampling_locations: Tensor,
                   attention_weights: Tensor) -> Tensor:
    """Multi-scale deformable attention (Deformable DETR, eq. 3): weighted sum of sampled values.

    value [B, N, M, D], N the tokens of L maps whose (H, W) are `spatial_shapes`; sampling_locations
    [B, Q, M, L, P, 2] as (x, y), the map spans [0, 1]; attention_weights [B, Q, M, L, P]. Returns [B, Q, M * D] in
    value's dtype. Values are zero outside the map; they must be finite, as for key_aware_deform_attn.

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
    chosen = _implementation_for(len(spatial_shapes), value, locations, weights)
    return chosen.ms_deform_attn(value, spatial_shapes, locations, weights)


def _implementation_for(levels: int, *operands: Tensor) -> ModuleType:
    """The implementation for `operands` on one device and `levels` maps."""
    device_type = operands[0].device.type
    if _chosen not in IMPLEMENTATIONS:
        raise UserError(f"DEFORM_ATTN_IMPL={_chosen!r} must be one of {', '.join(IMPLEMENTATIONS)}")
    if _chosen == "gather":
        return gather
    if _chosen == "torch" or (_chosen == "auto" and device_type not in ("cpu", "cuda", "meta")):
        return reference
    if not native.available(device_type):
        if _chosen == "native":
            raise UserError(native.missing(device_type))
        if not torch.compiler.is_compiling():
            _warn_once(device_type)
        return reference
    unable = _beyond_native(levels, operands)
    if unable and _chosen == "native":
        raise ValueError(f"{unable}; compute this in: with models.ops.implementation('torch')")
    return reference if unable else native


def _beyond_native(levels: int, operands: tuple[Tensor, ...]) -> str | None:
    """Why the compiled operators do not support this call; None: they do."""
    if levels > native.MAX_LEVELS:
        return f"spatial_shapes has {levels} maps, the compiled deformable attention takes at most {native.MAX_LEVELS}"
    if not torch.compiler.is_compiling() and any(forward_ad.unpack_dual(x).tangent is not None for x in operands):
        return "the compiled deformable attention has no forward-mode derivative"
    return None


@functools.cache
def _warn_once(device_type: str) -> None:
    warnings.warn("Deformable attention runs in plain PyTorch, which is slow: " + native.missing(device_type),
                  stacklevel=4)


def _autocast(x: Tensor) -> Tensor:
    device = x.device.type
    fixed = x.dtype == torch.float64 or not x.is_floating_point()
    if fixed or device == "meta" or not torch.is_autocast_enabled(device):
        return x
    return x.to(torch.get_autocast_dtype(device))


def _check(value: Tensor, spatial_shapes: list[tuple[int, int]], locations: Tensor) -> Tensor:
    """Raises ValueError unless value, shapes and locations fit; returns the locations in the accumulation dtype."""
    if not (isinstance(spatial_shapes, (list, tuple)) and spatial_shapes and all(map(_is_size, spatial_shapes))):
        raise ValueError(f"spatial_shapes {spatial_shapes} must be a list of (H, W), integers of at least 0")
    tokens = sum(h * w for h, w in spatial_shapes)
    if value.dim() != 4 or value.shape[1] != tokens:
        raise ValueError(f"value {tuple(value.shape)} must be [B, N, M, D] with the N = {tokens} tokens "
                         f"of spatial_shapes {spatial_shapes}")
    if value.dtype not in DTYPES:
        raise ValueError(f"value is {value.dtype}, it must be float32, float64, float16 or bfloat16")
    if locations.dim() != 6 or not locations.is_floating_point():
        raise ValueError(f"sampling_locations {tuple(locations.shape)}, {locations.dtype}, must be a floating point "
                         "tensor [B, Q, M, L, P, 2]")
    if not value.shape[3]:
        raise ValueError(f"value {tuple(value.shape)} has no channels")
    batch, _, heads, levels, _, last = locations.shape
    if (batch, heads, levels, last) != (value.shape[0], value.shape[2], len(spatial_shapes), 2):
        raise ValueError(f"sampling_locations {tuple(locations.shape)} must be [B, Q, M, L, P, 2] "
                         f"for value {tuple(value.shape)} and {len(spatial_shapes)} maps")
    if locations.device != value.device:
        raise ValueError(f"sampling_locations are on {locations.device}, value is on {value.device}")
    return locations.to(torch.float32 if value.dtype.itemsize < 4 else value.dtype)


def _is_size(shape: object) -> bool:
    """Whether it is (H, W); under torch.compile they may be symbols."""
    return (isinstance(shape, (list, tuple)) and len(shape) == 2
            and all(isinstance(size, (int, torch.SymInt)) and size >= 0 for size in shape))


def _fits(name: str, x: Tensor, like: Tensor, shape: tuple[int, ...]) -> None:
    if x.shape != shape:
        raise ValueError(f"{name} {tuple(x.shape)} must have shape {tuple(shape)}")
    if x.dtype != like.dtype:
        raise ValueError(f"{name} is {x.dtype}, it must be {like.dtype}")
    if x.device != like.device:
        raise ValueError(f"{name} is on {x.device}, value is on {like.device}")
