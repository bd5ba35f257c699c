"""Swin Transformer (Liu et al., 2021) in the layout of the published detection checkpoints; any image size.

B batch, C channels, H W map, M heads, T tokens of a window, V windows.
"""
from collections import OrderedDict
from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from models.backbones.weights import fetch_weights, load_backbone
from models.layers.recompute import recomputed
from util.options import BackboneOptions

_STORAGE = "https://github.com/SwinTransformer/storage/releases/download/v1.0.0/"
# name: channels of the first stage, blocks and heads per stage, window, weight file
SWINS: dict[str, tuple[int, tuple[int, ...], tuple[int, ...], int, str]] = {
    "swin_T_224_1k": (96, (2, 2, 6, 2), (3, 6, 12, 24), 7, "swin_tiny_patch4_window7_224.pth"),
    "swin_B_224_22k": (128, (2, 2, 18, 2), (4, 8, 16, 32), 7, "swin_base_patch4_window7_224_22k.pth"),
    "swin_B_384_22k": (128, (2, 2, 18, 2), (4, 8, 16, 32), 12, "swin_base_patch4_window12_384_22k.pth"),
    "swin_L_224_22k": (192, (2, 2, 18, 2), (6, 12, 24, 48), 7, "swin_large_patch4_window7_224_22k.pth"),
    "swin_L_384_22k": (192, (2, 2, 18, 2), (6, 12, 24, 48), 12, "swin_large_patch4_window12_384_22k.pth"),
}


class WindowAttention(nn.Module):
    """Self-attention inside windows, with a learned bias for every relative position."""

    def __init__(self, dim: int, window: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1)**2, num_heads))
        self.relative_position_index: Tensor
        self.register_buffer("relative_position_index", _relative_position_index(window))
        self.qkv = nn.Linear(dim, dim * 3)
        self.proj = nn.Linear(dim, dim)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x [B * V, T, C]; mask [V, T, T] is added to the logits of each window."""
        windows, tokens, dim = x.shape
        q, k, v = self.qkv(x).view(windows, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)[None]  # [1, M, T, T]
        if mask is not None:
            bias = (bias + mask[:, None]).repeat(windows // len(mask), 1, 1, 1)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        return self.proj(attended.transpose(1, 2).reshape(windows, tokens, dim))


class SwinBlock(nn.Module):
    """Attention in windows, which every second block shifts by half a window, and a feed-forward."""

    def __init__(self, dim: int, num_heads: int, window: int, shift: int, drop_path: float):
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, window, num_heads)
        self.drop_path = StochasticDepth(drop_path, "row")
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(OrderedDict(
            fc1=nn.Linear(dim, 4 * dim), act=nn.GELU(), fc2=nn.Linear(4 * dim, dim)))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x [B, H, W, C]; mask as in WindowAttention, used if this block shifts."""
        x = x + self.drop_path(self._attend(self.norm1(x), mask))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def _attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        batch, height, width, _ = x.shape
        x = F.pad(x, (0, 0, 0, -width % self.window, 0, -height % self.window))
        rolled = x.roll((-self.shift, -self.shift), (1, 2)) if self.shift else x
        attended = self.attn(_to_windows(rolled, self.window), mask if self.shift else None)
        x = _from_windows(attended, self.window, batch, *x.shape[1:3])
        x = x.roll((self.shift, self.shift), (1, 2)) if self.shift else x
        return x[:, :height, :width]


class PatchMerging(nn.Module):
    """Halves the resolution and doubles the channels."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        corners = [x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]]
        return self.reduction(self.norm(torch.cat(corners, -1)))


class PatchEmbed(nn.Module):
    """4x4 patches of the image, padded to whole ones: [B, 3, H, W] to [B, H / 4, W / 4, C]."""

    def __init__(self, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(3, dim, kernel_size=4, stride=4)
        self.norm = nn.LayerNorm(dim)

    def forward(self, images: Tensor) -> Tensor:
        images = F.pad(images, (0, -images.shape[3] % 4, 0, -images.shape[2] % 4))
        return self.norm(self.proj(images).permute(0, 2, 3, 1))


class SwinStage(nn.Module):
    """Blocks of one resolution, and the step to the next."""

    def __init__(self, dim: int, num_heads: int, window: int, drop_path: list[float], last: bool,
                 use_checkpoint: bool = False):
        super().__init__()
        self.window = window
        self.use_checkpoint = use_checkpoint
        self.blocks = nn.ModuleList(SwinBlock(dim, num_heads, window, window // 2 * (i % 2), rate)
                                    for i, rate in enumerate(drop_path))
        self.downsample = None if last else PatchMerging(dim)

    def forward(self, x: Tensor) -> Tensor:
        mask = _shift_mask(x, self.window)
        for block in self.blocks:
            x = recomputed(block, x, mask, enabled=self.use_checkpoint)
        return x


class SwinTransformer(nn.Module):
    """The maps of the stages `return_indices` (0 to 3, strides 4 to 32), each through its own norm."""

    def __init__(self, dim: int, depths: tuple[int, ...], num_heads: tuple[int, ...], window: int,
                 return_indices: list[int], drop_path: float = 0.2, use_checkpoint: bool = False):
        super().__init__()
        self.patch_embed = PatchEmbed(dim)
        rates = iter(torch.linspace(0, drop_path, sum(depths), device="cpu").tolist())
        last = return_indices[-1]  # no one reads the maps of later stages
        self.layers = nn.ModuleList(
            SwinStage(dim * 2**i, num_heads[i], window, [next(rates) for _ in range(depth)], i == last,
                      use_checkpoint)
            for i, depth in enumerate(depths[: last + 1]))
        self.return_indices = return_indices
        self.num_channels = [dim * 2**i for i in return_indices]
        for i, channels in zip(return_indices, self.num_channels):
            self.add_module(f"norm{i}", nn.LayerNorm(channels))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images [B, 3, H, W] to one map [B, C, H', W'] per chosen stage."""
        x, maps = self.patch_embed(images), []
        for i, stage in enumerate(cast(Iterable[SwinStage], self.layers)):
            x = stage(x)
            if i in self.return_indices:
                maps.append(self.get_submodule(f"norm{i}")(x).permute(0, 3, 1, 2).contiguous())
            if stage.downsample is not None:
                x = stage.downsample(x)
        return maps


def build_swin(options: BackboneOptions) -> SwinTransformer:
    dim, depths, num_heads, window, file = SWINS[options.backbone]
    model = SwinTransformer(dim, depths, num_heads, window, options.return_interm_indices,
                            options.drop_path_rate, options.use_checkpoint)
    if options.pretrained_backbone:
        weights = fetch_weights(options.backbone, _STORAGE + file, options.backbone_dir)
        # The norms of the returned maps keep their initial values: the classifier has none. Its head is left out.
        used = {key: value for key, value in weights.items() if key in model.state_dict()}
        load_backbone(model, used, options.backbone_dir or _STORAGE + file, fresh=("norm",))
    return model


def _relative_position_index(window: int) -> Tensor:
    """[T, T] row of the bias table for each pair of a window's tokens."""
    position = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
    offset = position[:, :, None] - position[:, None, :] + window - 1
    return offset[0] * (2 * window - 1) + offset[1]


def _to_windows(x: Tensor, window: int) -> Tensor:
    """[B, H, W, C] to [B * V, T, C]."""
    batch, height, width, dim = x.shape
    x = x.view(batch, height // window, window, width // window, window, dim)
    return x.transpose(2, 3).reshape(-1, window * window, dim)


def _from_windows(x: Tensor, window: int, batch: int, height: int, width: int) -> Tensor:
    x = x.view(batch, height // window, width // window, window, window, -1)
    return x.transpose(2, 3).reshape(batch, height, width, -1)


def _shift_mask(x: Tensor, window: int) -> Tensor:
    """[V, T, T], added to logits, that masks pairs of tokens which only the cyclic shift made neighbours, for a map
    [B, H, W, C].
    """
    shift = window // 2
    height, width = (side + -side % window for side in x.shape[1:3])

    def band(side: int) -> Tensor:
        position = torch.arange(side, device=x.device)
        return (position >= side - window).long() + (position >= side - shift).long()

    region = (3 * band(height)[:, None] + band(width)[None, :]).to(x.dtype)
    region = _to_windows(region[None, ..., None], window)[..., 0]
    return torch.where(region[:, None] == region[:, :, None], 0.0, -100.0).to(x.dtype)
