"""Contrastive denoising (DINO, section 3.3): noised ground-truth boxes that the decoder learns to restore or reject.

B batch, T the largest number of targets of an image, G groups, C channels.
"""
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert

from models.structures import Queries
from util.box_ops import inverse_sigmoid


@dataclass
class DenoisingMeta:
    """How the denoising queries are laid out: G groups of T positive, then T negative queries."""

    num_groups: int
    group_size: int  # 2 T

    @property
    def num_queries(self) -> int:
        return self.num_groups * self.group_size


@dataclass
class Denoising:
    """Makes the denoising queries of a batch: about `num_positive` positive ones, in groups that each hold all targets.

    box_noise_scale: 1 moves a positive corner by up to half a side, a negative one by half to a whole side.
    label_noise_ratio: twice the fraction of the labels that are replaced by random ones.
    """

    num_positive: int
    box_noise_scale: float
    label_noise_ratio: float

    def prepare(self, targets: list[dict[str, Tensor]], label_enc: nn.Embedding, num_classes: int
                ) -> tuple[Queries, DenoisingMeta] | None:
        """Queries [B, G * 2T, ...] for targets with "labels" [n] and "boxes" [n, 4] cxcywh in [0, 1].

        None if no image of the batch has a target. Images with fewer targets than T are padded with zeros.
        """
        max_targets = max(len(t["labels"]) for t in targets)
        if max_targets == 0:
            return None
        meta = DenoisingMeta(max(self.num_positive // max_targets, 1), 2 * max_targets)
        valid = torch.stack([torch.arange(max_targets, device=t["labels"].device) < len(t["labels"]) for t in targets])
        labels = nn.utils.rnn.pad_sequence([t["labels"] for t in targets], batch_first=True)
        boxes = nn.utils.rnn.pad_sequence([t["boxes"].to(label_enc.weight.dtype) for t in targets], batch_first=True)

        labels, boxes = labels.repeat(1, 2 * meta.num_groups), boxes.repeat(1, 2 * meta.num_groups, 1)
        valid = valid.repeat(1, 2 * meta.num_groups)[..., None]
        negative = torch.arange(meta.num_queries, device=boxes.device) % meta.group_size >= max_targets
        content = label_enc(self._noisy_labels(labels, num_classes))
        box_logits = inverse_sigmoid(self._noisy_boxes(boxes, negative))
        return Queries(content * valid, box_logits * valid), meta

    def _noisy_labels(self, labels: Tensor, num_classes: int) -> Tensor:
        if self.label_noise_ratio <= 0:
            return labels
        replaced = torch.rand(labels.shape, device=labels.device) < self.label_noise_ratio / 2
        return torch.where(replaced, torch.randint_like(labels, num_classes), labels)

    def _noisy_boxes(self, boxes: Tensor, negative: Tensor) -> Tensor:
        if self.box_noise_scale <= 0:
            return boxes
        corners = box_convert(boxes, "cxcywh", "xyxy")
        half_sizes = boxes[..., 2:].repeat(1, 1, 2) / 2 * self.box_noise_scale
        distance = torch.rand_like(boxes) + negative[:, None]
        sign = torch.randint_like(boxes, 2) * 2 - 1
        return box_convert((corners + sign * distance * half_sizes).clamp(0, 1), "xyxy", "cxcywh")


def prepend(denoising: Queries, queries: Queries, meta: DenoisingMeta) -> Queries:
    """Denoising queries, then the matched ones, masked so that a group sees only itself and the matched queries, and
    these see no group. Of matched queries in branches, groups see the one that the first query sees.
    """
    pad, total = meta.num_queries, meta.num_queries + queries.content.shape[1]
    index = torch.arange(total, device=queries.content.device)
    group = torch.where(index < pad, index // meta.group_size, -1)
    attn_mask = (group[None, :] != group[:, None]) & (index < pad)[None, :]  # everyone sees the matched queries
    if queries.attn_mask is not None:
        attn_mask[pad:, pad:] = queries.attn_mask
        attn_mask[:pad, pad:] = queries.attn_mask[0]
    return Queries(torch.cat([denoising.content, queries.content], 1),
                   torch.cat([denoising.require("box_logits"), queries.require("box_logits")], 1), attn_mask)
