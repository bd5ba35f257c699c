"""A batch of images of different sizes, padded once to a common size."""
from dataclasses import dataclass

import torch
from torch import Tensor

from util.integers import round_up


@dataclass
class NestedTensor:
    """tensors [B, C, H, W] zero-padded at the right and bottom; mask [B, H, W], True on padding, or None where there is
    no padding."""

    tensors: Tensor
    mask: Tensor | None

    @classmethod
    def from_list(cls, images: list[Tensor] | Tensor, multiple: int = 1) -> "NestedTensor":
        """Pads [C, H_i, W_i] images, or a batch of them, to the largest height and width, rounded up to `multiple`.
        Images that have this size are not padded and need no mask.
        """
        height, width = (round_up(max(image.shape[side] for image in images), multiple) for side in (-2, -1))
        if all(tuple(image.shape[-2:]) == (height, width) for image in images):
            return cls(images if isinstance(images, Tensor) else torch.stack(images), None)
        tensors = images[0].new_zeros(len(images), images[0].shape[0], height, width)
        mask = torch.ones(len(images), height, width, dtype=torch.bool, device=images[0].device)
        for i, image in enumerate(images):
            tensors[i, :, : image.shape[-2], : image.shape[-1]] = image
            mask[i, : image.shape[-2], : image.shape[-1]] = False
        return cls(tensors, mask)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "NestedTensor":
        return NestedTensor(self.tensors.to(device, non_blocking=non_blocking),
                            None if self.mask is None else self.mask.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "NestedTensor":
        return NestedTensor(self.tensors.pin_memory(), None if self.mask is None else self.mask.pin_memory())


Images = NestedTensor | list[Tensor] | Tensor  # of any size each, or [B, C, H, W]


def resize_mask(mask: Tensor | None, size: tuple[int, int]) -> Tensor | None:
    """Padding mask [B, H, W] at the resolution of a feature map (H', W'), by nearest neighbour. None stays None."""
    if mask is None:
        return None
    return torch.nn.functional.interpolate(mask[:, None].float(), size=size)[:, 0].bool()
