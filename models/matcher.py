"""Hungarian matching of predictions to targets (DETR, section 3.1).

S prediction sets (decoder layers and the encoder), B batch, Q queries, K classes, T targets of an image, A matches.
"""
import logging
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou

from models.classification import Classification, FocalClassification

logger = logging.getLogger(__name__)


@dataclass
class HungarianMatcher:
    """One-to-one matching that minimises class + L1 + GIoU cost."""

    cost_class: float
    cost_bbox: float
    cost_giou: float
    classification: Classification = field(default_factory=FocalClassification)
    non_finite: int = 0  # images with such costs, since somebody set it to 0

    @torch.no_grad()
    def __call__(self, outputs: list[dict[str, Tensor]], targets: list[dict[str, Tensor]]) -> Tensor:
        """Matches S outputs ("pred_logits" [B, Q, K], "pred_boxes" [B, Q, 4] cxcywh) to the targets of B images.

        Returns [S, 3, A]: the image, the query, and the target counted over the whole batch, of every match. All
        costs travel to the host in one transfer. Non-finite costs count as very bad, are reported with the ids of
        their images, and counted in `non_finite`.
        """
        logits = torch.stack([o["pred_logits"] for o in outputs], 1)  # [B, S, Q, K]
        boxes = torch.stack([o["pred_boxes"] for o in outputs], 1)
        costs = [self._cost(*image) for image in zip(logits, boxes, targets)]
        flat = torch.cat([cost.flatten() for cost in costs]).cpu()
        host = [block.view(cost.shape) for block, cost in zip(flat.split([c.numel() for c in costs]), costs)]

        broken = [i for i, cost in enumerate(host) if not cost.isfinite().all()]
        self.non_finite += len(broken)
        if broken:
            names = [int(targets[i]["image_id"]) if "image_id" in targets[i] else f"batch index {i}" for i in broken]
            logger.warning("matcher: NaN or infinite costs for the images %s", names)
        matches, first_target = [], 0
        for image, cost in enumerate(host):
            cost = cost.nan_to_num(nan=1e6, posinf=1e6, neginf=-1e6).numpy()
            pairs = np.stack([linear_sum_assignment(c) for c in cost])  # [S, 2, min(Q, T)]
            matches.append(np.stack([np.full_like(pairs[:, 0], image), pairs[:, 0], pairs[:, 1] + first_target], 1))
            first_target += cost.shape[-1]
        return torch.from_numpy(np.concatenate(matches, -1)).to(logits.device, torch.int64)

    def _cost(self, logits: Tensor, boxes: Tensor, target: dict[str, Tensor]) -> Tensor:
        """Cost [S, Q, T] of giving each query each target, for one image."""
        wanted = target["boxes"].to(boxes.dtype)
        corners = box_convert(boxes.flatten(0, 1), "cxcywh", "xyxy")
        giou = generalized_box_iou(corners, box_convert(wanted, "cxcywh", "xyxy")).unflatten(0, boxes.shape[:2])
        return (self.cost_class * self.classification.cost(logits, target["labels"])
                + self.cost_bbox * torch.cdist(boxes, wanted, p=1) - self.cost_giou * giou)
