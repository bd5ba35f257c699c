"""Deformable attention modules: plain (Deformable DETR, section 4.1) and key-aware (Lite DETR, section 3.4).

B batch, Q queries, N tokens of all levels, C channels, M heads, D = C / M channels per head, L levels, P points.
"""
import math
from abc import abstractmethod

import torch
from torch import Tensor, nn

from models.layers.linear import Linear
from models.layers.onednn import fusable
from models.ops import key_aware_deform_attn, ms_deform_attn
from models.ops.reference import key_aware_weights, sample
from models.remembered import remembered
from util.errors import UserError
from util.options import TransformerOptions


class DeformableAttention(nn.Module):
    """What both forms share: where each query samples, and the projections of value and output.

    With `same_loc`, a head has one set of offsets, which it uses on every level.
    """

    def __init__(self, dim: int, num_levels: int, num_heads: int, num_points: int, same_loc: bool = False):
        super().__init__()
        if dim % num_heads:
            raise UserError(f"hidden_dim {dim} is not a multiple of nheads {num_heads}")
        self.num_levels, self.num_heads, self.num_points = num_levels, num_heads, num_points
        self.offset_levels = 1 if same_loc else num_levels
        self.sampling_offsets = Linear(dim, num_heads * self.offset_levels * num_points * 2)
        self.value_proj = Linear(dim, dim)
        self.output_proj = Linear(dim, dim)

    def reset_parameters(self) -> None:
        """Xavier projections; each head samples in a direction of its own, point p at distance p + 1 pixels."""
        for layer in (child for child in self.children() if isinstance(child, nn.Linear)):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.sampling_offsets.weight)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(initial_offsets(self.num_heads, self.offset_levels, self.num_points))

    def sampling_locations(self, query: Tensor, reference: Tensor, shapes: list[tuple[int, int]]) -> Tensor:
        """Where each query samples, [B, Q, M, L, P, 2] as (x, y) with the padded map spanning [0, 1].

        query [B, Q, C]; reference [B, Q, L, 2] points, around which offsets count in pixels of each level,
        or [B, Q, L, 4] boxes (cxcywh), around whose centre they count in half sizes.
        """
        offsets = self.sampling_offsets(query).to(reference.dtype)
        offsets = offsets.view(*query.shape[:2], self.num_heads, self.offset_levels, self.num_points, 2)
        pairs = reference.unflatten(-1, (-1, 2)).movedim(-2, 0)[:, :, :, None, :, None]  # centres, or centres and sizes
        if fusable(reference):  # with whole rows a CPU is ten times as fast as with pairs that are broadcast
            pairs = pairs.expand(-1, -1, -1, -1, -1, self.num_points, -1).contiguous()
        centres, *boxes = pairs.unbind()
        if boxes:
            return torch.addcmul(centres, offsets, boxes[0], value=0.5 / self.num_points)
        sizes = level_sizes(tuple(shapes), self.num_points, device=reference.device, dtype=reference.dtype)
        return torch.addcdiv(centres, offsets, sizes)

    @abstractmethod
    def samples(self, query: Tensor, reference: Tensor, memory: Tensor, shapes: list[tuple[int, int]],
                padding: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The sampling locations [B, Q, M, L, P, 2] and their weights [B, Q, M, L, P], with a sum of 1 over L and P."""

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1))

    def _value(self, memory: Tensor, padding: Tensor | None) -> Tensor:
        value = self.value_proj(memory)
        if padding is not None:
            value = value.masked_fill(padding[..., None], 0)
        return self._split_heads(value)


class MSDeformAttn(DeformableAttention):
    """Multi-scale deformable attention: the weights of the samples are a linear function of the query."""

    def __init__(self, dim: int, num_levels: int, num_heads: int, num_points: int, same_loc: bool = False):
        super().__init__(dim, num_levels, num_heads, num_points, same_loc)
        self.attention_weights = Linear(dim, num_heads * num_levels * num_points)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.zeros_(self.attention_weights.weight)

    def forward(self, query: Tensor, reference: Tensor, memory: Tensor, shapes: list[tuple[int, int]],
                padding: Tensor | None = None) -> Tensor:
        """query [B, Q, C] attends to memory [B, N, C]; see `sampling_locations` for reference. Returns [B, Q, C]."""
        locations, weights = self.samples(query, reference, memory, shapes, padding)
        return self.output_proj(ms_deform_attn(self._value(memory, padding), shapes, locations, weights))

    def samples(self, query: Tensor, reference: Tensor, memory: Tensor, shapes: list[tuple[int, int]],
                padding: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The sampling locations [B, Q, M, L, P, 2] and their weights [B, Q, M, L, P], with a sum of 1 over L and P."""
        weights = self._split_heads(self.attention_weights(query)).softmax(-1)
        return (self.sampling_locations(query, reference, shapes),
                weights.unflatten(-1, (self.num_levels, self.num_points)))


class KeyAwareDeformAttn(DeformableAttention):
    """KDA: the weights of the samples are the softmax of query times sampled key.

    Without `proj_key`, as in the released models, the projected values serve as keys too.
    """

    def __init__(self, dim: int, num_levels: int, num_heads: int, num_points: int, same_loc: bool = False,
                 proj_key: bool = False):
        super().__init__(dim, num_levels, num_heads, num_points, same_loc)
        self.query_proj = Linear(dim, dim)
        self.key_proj = Linear(dim, dim) if proj_key else None
        self.reset_parameters()

    def forward(self, query: Tensor, reference: Tensor, memory: Tensor, shapes: list[tuple[int, int]],
                padding: Tensor | None = None) -> Tensor:
        """query [B, Q, C] attends to memory [B, N, C]; see `sampling_locations` for reference. Returns [B, Q, C]."""
        key, value = self._key_and_value(memory, padding)
        locations = self.sampling_locations(query, reference, shapes)
        projected = self._split_heads(self.query_proj(query))
        return self.output_proj(key_aware_deform_attn(projected, key, value, shapes, locations))

    def samples(self, query: Tensor, reference: Tensor, memory: Tensor, shapes: list[tuple[int, int]],
                padding: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See MSDeformAttn.samples. For inspection: the operator of `forward` does not return its weights."""
        locations = self.sampling_locations(query, reference, shapes)
        keys = sample(self._key_and_value(memory, padding)[0], shapes, locations)
        weights = key_aware_weights(self._split_heads(self.query_proj(query)), keys).transpose(1, 2)
        return locations, weights.unflatten(-1, (self.num_levels, self.num_points))

    def _key_and_value(self, memory: Tensor, padding: Tensor | None) -> tuple[Tensor, Tensor]:
        """Both [B, N, M, D], and one tensor unless there is a projection for keys."""
        value = key = self._value(memory, padding)
        if self.key_proj is not None:
            key = self.key_proj(memory)
            key = self._split_heads(key if padding is None else key.masked_fill(padding[..., None], 0))
        return key, value


@remembered
def level_sizes(shapes: tuple[tuple[int, int], ...], num_points: int, *, device: torch.device,
                dtype: torch.dtype) -> Tensor:
    """(W, H) of the level of each sample, [L, P, 2]."""
    # fills, since a copy from the host cannot be part of a CUDA graph
    sides = [torch.full((), side, dtype=dtype, device=device) for h, w in shapes for side in (w, h)]
    return torch.stack(sides).view(len(shapes), 1, 2).expand(-1, num_points, -1).contiguous()


def make_attention(options: TransformerOptions, num_points: int, same_loc: bool = False,
                   proj_key: bool = False) -> DeformableAttention:
    shape = (options.hidden_dim, options.num_feature_levels, options.nheads, num_points, same_loc)
    return KeyAwareDeformAttn(*shape, proj_key) if options.key_aware else MSDeformAttn(*shape)


def initial_offsets(num_heads: int, num_levels: int, num_points: int) -> Tensor:
    """The offsets of a query before training, flat as the bias [M * L * P * 2] of `sampling_offsets`: head m looks in
    direction m / M of a turn, and point p lies at p + 1 pixels along the farther axis.
    """
    angle = torch.arange(num_heads) * (2 * math.pi / num_heads)
    unit = torch.stack([angle.cos(), angle.sin()], -1)
    unit = unit / unit.abs().amax(-1, keepdim=True)
    distance = torch.arange(1, num_points + 1)
    return (unit[:, None, None] * distance[:, None]).expand(-1, num_levels, -1, -1).flatten()
