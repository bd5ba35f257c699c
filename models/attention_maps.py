"""What a detector's layers attend to in an image, recorded during a forward pass.

Q queries (of an encoder layer: the tokens that it updates), N tokens of all levels, M heads, L levels, P points.
"""
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

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
def record_attention(model: nn.Module) -> Iterator[list[Attended]]:
    """Inside this context a forward pass fills the list, in the order in which the layers run: the global attention of
    encoder layers and of decoder layers to their memory, and all deformable attention.
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
