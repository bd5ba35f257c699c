"""The data that pass between the parts of a detector.

B batch, N tokens of all levels, Q queries, C channels, L levels.
"""
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from models.remembered import remembered
from util.errors import UserError
from util.nested_tensor import NestedTensor
from util.precision import exact


@dataclass
class FlatFeatures:
    """Feature maps of all levels as one token sequence, finest level first, row by row."""

    tokens: Tensor  # [B, N, C]
    pos: Tensor  # [B, N, C] position encoding plus level embedding
    padding: Tensor | None  # [B, N] True on padding; None: there is none
    shapes: list[tuple[int, int]]  # (H, W) per level, on the host
    valid_ratios: Tensor | None  # [B, L, 2] part of each map's (width, height) that is not padding; None: all of it

    @classmethod
    def flatten(cls, maps: list[NestedTensor], positions: list[Tensor],
                level_embed: Tensor | None = None) -> "FlatFeatures":
        """From L maps [B, C, H, W], their position encodings of the same shape, and level_embed [L, C], one
        vector per level that is added to them.
        """
        def tokens(x: Tensor) -> Tensor:
            return x.flatten(2).transpose(1, 2)

        pos = torch.cat([tokens(p) for p in positions], 1)
        if level_embed is not None:
            lengths = [p.shape[-2] * p.shape[-1] for p in positions]
            pos = pos + torch.cat([e.expand(length, -1) for e, length in zip(level_embed, lengths)])
        masks = [m.mask for m in maps if m.mask is not None] or None  # all maps have one, or none
        return cls(
            tokens=torch.cat([tokens(m.tensors) for m in maps], 1),
            pos=pos,
            padding=None if masks is None else torch.cat([mask.flatten(1) for mask in masks], 1),
            shapes=[(m.tensors.shape[-2], m.tensors.shape[-1]) for m in maps],
            valid_ratios=None if masks is None else torch.stack([_valid_ratio(m, pos.dtype) for m in masks], 1),
        )

    @property
    def level_start(self) -> list[int]:
        """Index of the first token of each level, and N at the end."""
        starts = [0]
        for height, width in self.shapes:
            starts.append(starts[-1] + height * width)
        return starts

    def select(self, levels: list[int]) -> "FlatFeatures":
        """The tokens of these levels, given in ascending order."""
        starts = self.level_start
        slices = [slice(starts[level], starts[level + 1]) for level in levels]

        def chosen(x: Tensor) -> Tensor:
            return torch.cat([x[:, level] for level in slices], 1)

        padding = None if self.padding is None else chosen(self.padding)
        shapes = [self.shapes[level] for level in levels]
        ratios = None if self.valid_ratios is None else self.valid_ratios[:, levels]
        return FlatFeatures(chosen(self.tokens), chosen(self.pos), padding, shapes, ratios)

    def with_tokens(self, tokens: Tensor) -> "FlatFeatures":
        return replace(self, tokens=tokens)

    def reference_points(self) -> Tensor:
        """Centre of every token in units of the unpadded image, seen from every level: [B, N, L, 2] as (x, y)."""
        return self.on_levels(self.token_centres())

    def token_centres(self) -> Tensor:
        """Centre of every token in units of the unpadded image: [B, N, 2] as (x, y)."""
        if self.valid_ratios is None:
            centres = unpadded_centres(tuple(self.shapes), device=self.tokens.device,
                                       dtype=exact(self.tokens.dtype))
            return centres.expand(self.tokens.shape[0], -1, -1)
        return torch.cat([_centres(height, width, self.valid_ratios[:, level])
                          for level, (height, width) in enumerate(self.shapes)], 1)

    def on_levels(self, boxes: Tensor) -> Tensor:
        """Boxes [B, Q, 4] or points [B, Q, 2] in units of the unpadded image, as seen by each level, whose map with its
        padding spans [0, 1]: [B, Q, L, 4 or 2].
        """
        if self.valid_ratios is None:
            return boxes[:, :, None].expand(-1, -1, len(self.shapes), -1)
        pairs = boxes[:, :, None].unflatten(-1, (-1, 2))  # centre and size
        return (pairs * self.valid_ratios[:, None, :, None]).flatten(-2)


@remembered
def unpadded_centres(shapes: tuple[tuple[int, int], ...], *, device: torch.device, dtype: torch.dtype) -> Tensor:
    """FlatFeatures.token_centres of images without padding: [1, N, 2]."""
    whole = torch.ones(1, 2, dtype=dtype, device=device)
    return torch.cat([_centres(height, width, whole) for height, width in shapes], 1)


def _centres(height: int, width: int, valid: Tensor) -> Tensor:
    """The centres of a level's tokens, [B, H * W, 2] as (x, y), for the valid part of its (width, height), [B, 2]."""
    # Not from 0.5: a length that follows from floats makes tracing for any image size take minutes.
    rows, columns = (torch.arange(side, dtype=valid.dtype, device=valid.device) + 0.5 for side in (height, width))
    y = rows[:, None] / (valid[:, None, None, 1] * height)
    x = columns[None, :] / (valid[:, None, None, 0] * width)
    return torch.stack(torch.broadcast_tensors(x, y), -1).flatten(1, 2)


def _valid_ratio(mask: Tensor, dtype: torch.dtype) -> Tensor:
    valid = (~mask).to(exact(dtype))
    return torch.stack([valid[:, 0, :].mean(1), valid[:, :, 0].mean(1)], -1)


@dataclass
class Queries:
    """Decoder queries; when training, denoising queries come first."""

    content: Tensor  # [B, Q, C]
    box_logits: Tensor | None = None  # [B, Q, 4] inverse sigmoid of cxcywh, or [B, Q, 2] of a point
    attn_mask: Tensor | None = None  # [Q, Q] True where a query may not see another
    pos: Tensor | None = None  # [B, Q, C] position encoding, where it does not follow from the boxes

    def require(self, name: Literal["box_logits", "pos"]) -> Tensor:
        """A field that a decoder needs. Raises UserError where the detector does not set it."""
        value = getattr(self, name)
        if value is None:
            raise UserError(f"this decoder needs queries with {name}, which this detector's lack: choose another "
                            "decoder, or decoder=None for the detector's own")
        return value


@dataclass
class Proposals:
    """Two-stage proposals: the encoder tokens chosen as the decoder's initial queries."""

    content: Tensor  # [B, Q, C] normalised memory of the chosen tokens
    box_logits: Tensor  # [B, Q, 4], with gradient

    def first(self, count: int) -> "Proposals":
        if count >= self.content.shape[1]:
            return self
        return Proposals(self.content[:, :count], self.box_logits[:, :count])


@dataclass
class TokenScores:
    """Every encoder token as a proposal."""

    logits: Tensor  # [B, N, K]
    box_logits: Tensor  # [B, N, 4], with gradient; infinite where a token cannot be a proposal


@dataclass
class DecoderOutput:
    """Lists with one entry per decoder layer."""

    hidden: list[Tensor]  # [B, Q, C]
    # [B, Q, 4 or 2] sigmoid boxes or points: reference[i] entered layer i. None: heads predict boxes without one
    reference: list[Tensor] | None = None
    eps: float = 1e-5  # of the inverse sigmoid of the reference
    norm: nn.Module | None = None  # of the hidden states, before the heads read them

    def without_first(self, count: int) -> "DecoderOutput":
        """The output for all but the first `count` queries."""
        if not count:
            return self
        reference = None if self.reference is None else [x[:, count:] for x in self.reference]
        return replace(self, hidden=[x[:, count:] for x in self.hidden], reference=reference)
