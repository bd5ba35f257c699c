"""ConvNeXt (Liu et al., 2022) in the layout of the published detection checkpoints; any image size.

B batch, C channels, H W map.
"""
from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.backbones.weights import fetch_weights, load_backbone
from models.layers.recompute import recomputed
from util.options import BackboneOptions

_STORAGE = "https://dl.fbaipublicfiles.com/convnext/"
# name: channels and blocks per stage, weight file
CONVNEXTS: dict[str, tuple[tuple[int, ...], tuple[int, ...], str]] = {
    "convnext_xlarge_22k": ((256, 512, 1024, 2048), (3, 3, 27, 3), "convnext_xlarge_22k_224.pth"),
}
EPS = 1e-6


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of maps [B, C, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    """A 7x7 convolution of each channel and a feed-forward, whose result is added with a learned weight per channel."""

    def __init__(self, dim: int):
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, kernel_size=7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, EPS)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.pwconv2 = nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(torch.full((dim,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, H, W]."""
        hidden = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        hidden = self.pwconv2(F.gelu(self.pwconv1(hidden)))
        return x + (self.gamma * hidden).permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """The maps of the stages `return_indices` (0 to 3, strides 4 to 32), each through its own norm.

    As in the published checkpoints there are four norms: those of other stages stay as they are.
    """

    def __init__(self, dims: tuple[int, ...], depths: tuple[int, ...], return_indices: list[int],
                 use_checkpoint: bool = False):
        super().__init__()
        steps = [nn.Sequential(nn.Conv2d(3, dims[0], kernel_size=4, stride=4), LayerNorm2d(dims[0], EPS))]
        steps += [nn.Sequential(LayerNorm2d(before, EPS), nn.Conv2d(before, after, kernel_size=2, stride=2))
                  for before, after in zip(dims, dims[1:])]
        self.downsample_layers = nn.ModuleList(steps)
        self.stages = nn.ModuleList(nn.Sequential(*(ConvNeXtBlock(dim) for _ in range(depth)))
                                    for dim, depth in zip(dims, depths))
        self.return_indices = return_indices
        self.num_channels = [dims[i] for i in return_indices]
        self.use_checkpoint = use_checkpoint
        for i, dim in enumerate(dims):
            self.add_module(f"norm{i}", LayerNorm2d(dim, EPS).requires_grad_(i in return_indices))
        for part in (*self.downsample_layers[return_indices[-1] + 1:], *self.stages[return_indices[-1] + 1:]):
            part.requires_grad_(False)  # no one reads the maps of later stages

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images [B, 3, H, W] to one map [B, C, H / stride, W / stride] per chosen stage. As published, pixels that do
        not fill a cell are left out, unless a map would have none.
        """
        x, maps = images, []
        for i, (step, stage) in enumerate(zip(self.downsample_layers, self.stages)):
            if i > self.return_indices[-1]:
                break
            size = 2 if i else 4
            x = step(F.pad(x, (0, max(size - x.shape[3], 0), 0, max(size - x.shape[2], 0))))
            for block in cast(Iterable[nn.Module], stage):
                x = recomputed(block, x, enabled=self.use_checkpoint)
            if i in self.return_indices:
                maps.append(self.get_submodule(f"norm{i}")(x))
        return maps


def build_convnext(options: BackboneOptions) -> ConvNeXt:
    dims, depths, file = CONVNEXTS[options.backbone]
    model = ConvNeXt(dims, depths, options.return_interm_indices, options.use_checkpoint)
    if options.pretrained_backbone:
        weights = fetch_weights(options.backbone, _STORAGE + file, options.backbone_dir)
        # The norms of the returned maps keep their initial values: the classifier has none. Its head is left out.
        used = {key: value for key, value in weights.items() if key in model.state_dict()}
        load_backbone(model, used, options.backbone_dir or _STORAGE + file, fresh=("norm",))
    return model
