"""Backbones by the name that config key `backbone` gives.

An entry is `builder(options: BackboneOptions) -> nn.Module`. What it builds maps images [B, 3, H, W] to a list of
feature maps, one for each of `return_interm_indices` (0 to 3, strides 4 to 32), and has `num_channels`, a list with the
channels of each. An entry "prefix:NAME" builds all backbones whose name has that prefix.
"""
import contextlib
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from models.backbones.convnext import CONVNEXTS, build_convnext
from models.backbones.resnet import build_resnet
from models.backbones.swin import SWINS, build_swin
from models.layers.normed_conv import join_batch_norms, prepared
from models.layers.position_encoding import PositionEmbeddingLearned, PositionEmbeddingSine
from models.registry import choose
from util.errors import UserError
from util.nested_tensor import NestedTensor, resize_mask
from util.options import BackboneOptions, PositionOptions


def _build_timm(options: BackboneOptions) -> nn.Module:
    from models.backbones.timm import build_timm  # importing timm takes a second
    return build_timm(options)


BACKBONES: dict[str, Callable[[BackboneOptions], nn.Module]] = {
    **dict.fromkeys(("resnet18", "resnet34", "resnet50", "resnet101"), build_resnet),
    **dict.fromkeys(SWINS, build_swin),
    **dict.fromkeys(CONVNEXTS, build_convnext),
    "timm:NAME": _build_timm,
}


class Backbone(nn.Sequential):
    """Feature extractor and position encoding, named "0" and "1" as in the published checkpoints."""

    def __init__(self, features: nn.Module, position: nn.Module):
        super().__init__(features, position)
        self.num_channels = cast(list[int], features.num_channels)

    @property
    def position(self) -> nn.Module:
        return self[1]

    def forward(self, samples: NestedTensor) -> tuple[list[NestedTensor], list[Tensor]]:
        """One padded map per level, finest first, and their position encodings [B, C, H, W]."""
        graph = (torch.compiler.is_compiling() or torch.jit.is_tracing()
                 or self[0]._compiled_call_impl is not None)  # has its own way with the norms
        with contextlib.nullcontext() if graph else prepared(self[0]):
            maps = [NestedTensor(x, resize_mask(samples.mask, x.shape[-2:])) for x in self[0](samples.tensors)]
        return maps, [self.position(m) for m in maps]


def build_backbone(options: BackboneOptions, position: PositionOptions, hidden_dim: int, train: bool) -> Backbone:
    """`train` False freezes all of it. Raises UserError for an unknown name or unusable options."""
    build = choose(BACKBONES, "backbone", options.backbone)
    indices = options.return_interm_indices
    if not indices or indices != sorted(set(indices)) or not set(indices) <= {0, 1, 2, 3}:
        raise UserError(f"return_interm_indices={indices} must be ascending and from 0 to 3 (strides 4 to 32)")
    features = build(options)
    if not options.use_checkpoint:  # each stage would compute the kernels again
        join_batch_norms(features)
    for name, parameter in features.named_parameters():
        if not train or any(keyword in name for keyword in options.backbone_freeze_keywords or []):
            parameter.requires_grad_(False)
    if hidden_dim % 4:
        raise UserError(f"hidden_dim={hidden_dim} must be a multiple of 4, for the position encoding")
    if position.position_embedding in ("learned", "v3"):
        return Backbone(features, PositionEmbeddingLearned(hidden_dim // 2))
    sine = PositionEmbeddingSine(hidden_dim // 2, position.pe_temperatureH, position.pe_temperatureW,
                                 position.pe_centres)
    return Backbone(features, sine)
