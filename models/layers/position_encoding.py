"""Position encodings of feature maps (DETR, section 3.2; per-axis temperatures from DAB-DETR) and of boxes."""
import math

import torch
from torch import Tensor, nn

from util.nested_tensor import NestedTensor


class PositionEmbeddingSine(nn.Module):
    """Sine encoding of each pixel's position inside the unpadded image: NestedTensor -> [B, 2 * num_feats, H, W].

    The position is the pixel's far edge (DETR), or its centre with `centres` (Deformable DETR).
    """

    def __init__(self, num_feats: int, temperature_h: float = 20, temperature_w: float = 20, centres: bool = False):
        super().__init__()
        self.num_feats = num_feats
        self.temperature_h = temperature_h
        self.temperature_w = temperature_w
        self.shift = 0.5 if centres else 0.0

    def forward(self, x: NestedTensor) -> Tensor:
        valid = torch.ones_like(x.tensors[:, 0], dtype=torch.bool) if x.mask is None else ~x.mask
        dtype = torch.promote_types(x.tensors.dtype, torch.float32)  # half precision cannot count to W
        encoded = []
        for axis, temperature in ((1, self.temperature_h), (2, self.temperature_w)):
            position = valid.cumsum(axis, dtype=dtype)
            end = position.select(axis, -1).unsqueeze(axis)
            position = (position - self.shift) / (end + 1e-6) * (2 * math.pi)
            encoded.append(_sine(position, self.num_feats, temperature))
        return torch.cat(encoded, -1).permute(0, 3, 1, 2)


class PositionEmbeddingLearned(nn.Module):
    """Learned row and column embeddings for maps of up to 50x50 (larger maps repeat the last one)."""

    def __init__(self, num_feats: int, size: int = 50):
        super().__init__()
        self.row_embed = nn.Embedding(size, num_feats)
        self.col_embed = nn.Embedding(size, num_feats)
        nn.init.uniform_(self.row_embed.weight)
        nn.init.uniform_(self.col_embed.weight)

    def forward(self, x: NestedTensor) -> Tensor:
        batch, _, height, width = x.tensors.shape
        last = self.row_embed.num_embeddings - 1
        rows = self.row_embed(torch.arange(height, device=x.tensors.device).clamp(max=last))
        cols = self.col_embed(torch.arange(width, device=x.tensors.device).clamp(max=last))
        grid = torch.cat([cols[None].expand(height, -1, -1), rows[:, None].expand(-1, width, -1)], -1)
        return grid.permute(2, 0, 1)[None].expand(batch, -1, -1, -1)


def box_sine_embedding(boxes: Tensor, num_feats: int) -> Tensor:
    """Sine encoding of boxes [..., 4] (cxcywh in [0, 1]) in the order y, x, w, h: [..., 4 * num_feats]."""
    x, y, size = boxes.split((1, 1, 2), -1)  # an index of numbers would make a GPU wait for it
    return coordinate_sine_embedding(torch.cat([y, x, size], -1), num_feats)


def coordinate_sine_embedding(coordinates: Tensor, num_feats: int) -> Tensor:
    """Sine encoding of n coordinates [..., n] in [0, 1], one after the other: [..., n * num_feats]."""
    return _sine(coordinates * (2 * math.pi), num_feats, 10000).flatten(-2)


def _sine(position: Tensor, num_feats: int, temperature: float) -> Tensor:
    """[...] to [..., num_feats]: sine and cosine interleaved, two neighbours at one frequency."""
    index = torch.arange(num_feats, dtype=position.dtype, device=position.device)
    angle = position[..., None] / temperature ** (2 * index.div(2, rounding_mode="floor") / num_feats)
    return torch.stack([angle[..., 0::2].sin(), angle[..., 1::2].cos()], -1).flatten(-2)
