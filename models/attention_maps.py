"""What a detector's layers attend to in an image, recorded during a forward pass.

Q queries (of an encoder layer: the tokens that it updates), N tokens of all levels, M heads, L levels, P points.
"""
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from models.decoders.global_attention import GlobalDecoderLayer
from models.encoders.global_attention import GlobalEncoderLayer
from models.layers.deform_attn import DeformableAttention
from models.stage import Stage


@dataclass
class Attended:
    """Attention of one layer in the first image of a batch; the weights of a query and head have a sum of 1."""

    part: str  # name of the module that holds the layers, such as "stages.0.encoder"
    shapes: list[tuple[int, int]]  # (H, W) of the maps that are attended to
    weights: Tensor  # global attention: [Q, M, N]; deformable: [Q, M, L, P]
    locations: Tensor | None = None  # deformable: [Q, M, L, P, 2] as (x, y), the image spans [0, 1]

    @property
    def in_encoder(self) -> bool:
        return self.part.endswith("encoder")


@contextlib.contextmanager
def record_attention(model: nn.Module, encoders: bool = True) -> Iterator[list[Attended]]:
    """Inside this context a forward pass fills the list, in the order in which the layers run: the global attention of
    encoder layers and of decoder layers to their memory, and all deformable attention; without `encoders` only what
    decoder layers attend to. One thread at a time may run the model.
    """
    records: list[Attended] = []
    hooks: list[RemovableHandle] = []
    shapes: list[tuple[int, int]] = []  # of the maps of the stage that runs

    def enter_stage(stage: Stage, args: tuple) -> None:
        shapes[:] = args[0].select(stage.levels).shapes

    def want_weights(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return args, kwargs | {"need_weights": True, "average_attn_weights": False}

    def record_global(part: str):
        def hook(module: nn.Module, args: tuple, output: tuple[Tensor, Tensor]) -> None:
            records.append(Attended(part, list(shapes), output[1][0].transpose(0, 1).detach()))
        return hook

    def record_deformable(part: str):
        def hook(module: DeformableAttention, args: tuple, output: Tensor) -> None:
            locations, weights = module.samples(*args)
            records.append(Attended(part, args[3], weights[0].detach(), locations[0].detach()))
        return hook

    for name, module in model.named_modules():
        part = name.partition(".layers.")[0]
        if part.endswith("encoder") and not encoders:
            continue
        if isinstance(module, Stage):
            hooks.append(module.register_forward_pre_hook(enter_stage))
        elif isinstance(module, (GlobalEncoderLayer, GlobalDecoderLayer)):
            attention = module.self_attn if isinstance(module, GlobalEncoderLayer) else module.multihead_attn
            hooks.append(attention.register_forward_pre_hook(want_weights, with_kwargs=True))
            hooks.append(attention.register_forward_hook(record_global(part)))
        elif isinstance(module, DeformableAttention):
            hooks.append(module.register_forward_hook(record_deformable(part)))
    try:
        yield records
    finally:
        for hook in hooks:
            hook.remove()


def as_map(weights: Tensor, shapes: list[tuple[int, int]]) -> Tensor:
    """Global attention [N] to the tokens of all maps, added up at the resolution of the finest: [H, W]."""
    maps = [part.view(1, 1, *shape) for part, shape in zip(weights.split([h * w for h, w in shapes]), shapes)]
    return torch.cat([F.interpolate(m, shapes[0]) for m in maps]).sum(0)[0]
