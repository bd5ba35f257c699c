"""Position encodings of feature maps (DETR, section 3.2; per-axis temperatures from DAB-DETR) and of boxes."""
import math

import torch
from torch import Tensor, nn

from models.remembered import remembered
from util.nested_tensor import NestedTensor
from util.precision import exact


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
        dtype = exact(x.tensors.dtype)  # half precision cannot count to W
        temperatures = self.temperature_h, self.temperature_w
        if x.mask is None:
            batch, _, height, width = x.tensors.shape
            return unpadded_sine(height, width, self.num_feats, temperatures, self.shift,
                                 device=x.tensors.device, dtype=dtype).expand(batch, -1, -1, -1)
        encoded = []
        for axis, temperature in zip((1, 2), temperatures):
            position = (~x.mask).cumsum(axis, dtype=dtype)
            end = position.select(axis, -1).unsqueeze(axis)
            encoded.append(_sine((position - self.shift) / (end + 1e-6), self.num_feats, temperature))
        return torch.cat(encoded, -1).permute(0, 3, 1, 2)


@remembered
def unpadded_sine(height: int, width: int, num_feats: int, temperatures: tuple[float, float], shift: float, *,
                  device: torch.device, dtype: torch.dtype) -> Tensor:
    """PositionEmbeddingSine of a map without padding: [1, 2 * num_feats, H, W]."""
    encoded = []
    for side, temperature in zip((height, width), temperatures):
        position = torch.arange(side, dtype=dtype, device=device) + 1
        encoded.append(_sine((position - shift) / (position[-1:] + 1e-6), num_feats, temperature))
    rows, columns = encoded
    grid = torch.cat([rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1)], -1)
    return grid.permute(2, 0, 1)[None]


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
    return _sine(coordinates, num_feats, 10000).flatten(-2)


def _sine(position: Tensor, num_feats: int, temperature: float) -> Tensor:
    """Positions [...], of which 1 is a whole turn at the highest frequency, to [..., num_feats]: sine and cosine
    interleaved, two neighbours at one frequency. A cosine is the sine of a quarter turn more.
    """
    phases, frequencies = _waves(num_feats, temperature, device=position.device, dtype=position.dtype)
    return torch.addcmul(phases, position[..., None], frequencies).sin()


@remembered
def _waves(num_feats: int, temperature: float, *, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Phases and angular frequencies [num_feats]."""
    index = torch.arange(num_feats, dtype=dtype, device=device)
    pair = index.div(2, rounding_mode="floor")
    return (index - 2 * pair) * (math.pi / 2), 2 * math.pi / temperature ** (2 * pair / num_feats)
