"""Hungarian matching of predictions to targets (DETR, section 3.1).

S prediction sets (decoder layers and the encoder), B batch, Q queries, K classes, T targets of an image, A matches.
"""
import logging
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from models.classification import Classification, FocalClassification
from util.box_ops import pairwise_giou, pairwise_iou

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Matching:
    """What the matcher found."""

    indices: Tensor  # [S, 3, A] batch index, query, and target counted over the whole batch, of every match
    non_finite: int = 0  # images with NaN or infinite costs


@dataclass
class HungarianMatcher:
    """One-to-one matching that minimises class + L1 + GIoU cost."""

    cost_class: float
    cost_bbox: float
    cost_giou: float
    classification: Classification = field(default_factory=FocalClassification)
    giou_eps: float = 0.0  # see util.box_ops.giou

    @torch.no_grad()
    def __call__(self, outputs: list[dict[str, Tensor]], targets: list[dict[str, Tensor]]) -> Matching:
        """Matches S outputs ("pred_logits" [B, Q, K], "pred_boxes" [B, Q, 4] cxcywh) to the targets of B images.

        All costs are computed at once and travel to the host in one transfer: a GPU's time for them hardly depends on
        the number of images. Non-finite costs count as very high, and the ids of their images are logged.
        """
        logits = torch.stack([o["pred_logits"] for o in outputs], 1)  # [B, S, Q, K]
        boxes = torch.stack([o["pred_boxes"] for o in outputs], 1)
        counts = [len(target["labels"]) for target in targets]
        if not any(counts) or not logits.shape[2]:
            return Matching(torch.zeros(len(outputs), 3, 0, dtype=torch.int64, device=logits.device))
        padded, real = (x.to(logits.device, non_blocking=True) for x in _padded_targets(counts))
        labels, target_boxes = (torch.cat([target[name] for target in targets])[padded] for name in ("labels", "boxes"))
        costs = self._cost(logits, boxes, labels, target_boxes.to(boxes.dtype), real).cpu().numpy()

        # NumPy from here on: it does not wake all of torch's threads for such small work.
        non_finite: list[int] = []
        matches: list[np.ndarray] = []
        first_target = 0
        for batch_idx, (padded_cost, count) in enumerate(zip(costs, counts)):
            cost = padded_cost[..., :count]
            if not np.isfinite(cost).all():
                non_finite.append(batch_idx)
                cost = np.nan_to_num(cost, nan=1e6, posinf=1e6, neginf=-1e6)
            pairs = np.stack([linear_sum_assignment(c) for c in cost])  # [S, 2, min(Q, T)]
            query_idx, target_idx = pairs[:, 0], pairs[:, 1] + first_target
            matches.append(np.stack([np.full_like(query_idx, batch_idx), query_idx, target_idx], 1))
            first_target += count
        if non_finite:
            logger.warning("matcher: NaN or infinite costs for the images %s", [_name(targets, i) for i in non_finite])
        indices = torch.from_numpy(np.concatenate(matches, -1)).to(logits.device, torch.int64, non_blocking=True)
        return Matching(indices, len(non_finite))

    def _cost(self, logits: Tensor, boxes: Tensor, labels: Tensor, target_boxes: Tensor, real: Tensor) -> Tensor:
        """Cost [B, S, Q, T] of assigning to each query (logits [B, S, Q, K], boxes [B, S, Q, 4]) each target of its
        image (labels [B, T], target_boxes [B, T, 4]). real [B, T]: False where an image has no further target.
        """
        giou = pairwise_giou(boxes, target_boxes[:, None], self.giou_eps)
        # A cost may depend on the best box of its image: that of another image's target is none.
        giou = giou.masked_fill(~real[:, None, None], -1)
        return (self.cost_class * self.classification.cost(logits, labels, giou)
                + self.cost_bbox * torch.cdist(boxes, target_boxes[:, None], p=1) - self.cost_giou * giou)


@dataclass(frozen=True)
class OneToManyMatcher:
    """Several queries for each target (MS-DETR, section 3.2, and its code). A score is `prob_weight` times the
    probability of the target's class plus the rest times the IoU. A query belongs to the target with its highest score;
    a target takes the `most` best of its queries that have at least `threshold`, or are the best query of any target,
    so that something learns while all scores are low.
    """

    most: int
    classification: Classification = field(default_factory=FocalClassification)
    prob_weight: float = 0.3
    threshold: float = 0.4

    @torch.no_grad()
    def __call__(self, outputs: dict[str, Tensor], targets: list[dict[str, Tensor]]) -> Tensor:
        """The matches [3, A] as in Matching, of one output."""
        logits, boxes = outputs["pred_logits"], outputs["pred_boxes"]
        counts = [len(target["labels"]) for target in targets]
        if not any(counts) or not logits.shape[1]:
            return torch.zeros(3, 0, dtype=torch.int64, device=logits.device)
        padded, real = (x.to(logits.device, non_blocking=True) for x in _padded_targets(counts))
        labels, target_boxes = (torch.cat([target[name] for target in targets])[padded] for name in ("labels", "boxes"))
        ious = pairwise_iou(boxes, target_boxes.to(boxes.dtype))
        prob = self.classification.prob(logits[:, None], labels)[:, 0]
        scores = self.prob_weight * prob + (1 - self.prob_weight) * ious  # [B, Q, T]
        scores = scores.masked_fill(~real[:, None], -1)

        no = torch.zeros_like(scores, dtype=torch.bool)
        best_of_target = no.scatter(1, scores.argmax(1, keepdim=True), True) & real[:, None]
        able = (scores >= self.threshold) | best_of_target.any(-1, keepdim=True)
        own = no.scatter(-1, scores.argmax(-1, keepdim=True), True)
        best = scores.masked_fill(~(able & own & real[:, None]), -1).topk(min(self.most, scores.shape[1]), dim=1)
        taken = no.scatter(1, best.indices, best.values >= 0)
        batch_idx, query_idx, own_target = taken.nonzero().unbind(1)
        return torch.stack([batch_idx, query_idx, padded[batch_idx, own_target]])


def _name(targets: list[dict[str, Any]], batch_idx: int) -> int | float | str:
    image_id = targets[batch_idx].get("image_id", f"batch index {batch_idx}")
    return image_id.item() if isinstance(image_id, Tensor) else image_id


def _padded_targets(counts: list[int]) -> tuple[Tensor, Tensor]:
    """The targets of each image, counted over the whole batch, and beyond them any target [B, T]; and which of them are
    the image's [B, T]."""
    index, first = np.zeros((len(counts), max(counts)), np.int64), 0
    for row, count in zip(index, counts):
        row[:count] = np.arange(first, first + count)
        first += count
    return torch.from_numpy(index), torch.arange(index.shape[1]) < torch.tensor(counts)[:, None]
