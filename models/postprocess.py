"""From queries to detections."""
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_convert

from models.classification import Classification, FocalClassification


@dataclass
class PostProcess:
    """Keeps the `num_select` (query, class) pairs of each image with the highest scores, or with softmax classification
    one detection per query; nms_iou_threshold > 0 adds class-wise NMS.
    """

    num_select: int
    nms_iou_threshold: float = -1
    classification: Classification = field(default_factory=FocalClassification)

    @torch.no_grad()
    def __call__(self, outputs: dict[str, Tensor], target_sizes: Tensor) -> list[dict[str, Tensor]]:
        """outputs "pred_logits" [B, Q, K], "pred_boxes" [B, Q, 4] cxcywh in [0, 1]; target_sizes [B, 2] (H, W).

        Returns for each image "scores" [n] (in descending order; with softmax in the order of the queries), "labels"
        [n], "boxes" [n, 4] xyxy in pixels.
        """
        batch = zip(*self.top_detections(outputs, target_sizes))
        results = [{"scores": s, "labels": c, "boxes": b} for s, c, b in batch]
        return [self._nms(result) for result in results] if self.nms_iou_threshold > 0 else results

    def top_detections(self, outputs: dict[str, Tensor], target_sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same before NMS, of all images: scores and labels [B, n], boxes [B, n, 4]."""
        logits, boxes = outputs["pred_logits"], outputs["pred_boxes"]
        scores, labels, queries = self.classification.top_detections(logits, self.num_select)
        size = target_sizes.to(boxes).flip(1).repeat(1, 2)[:, None]  # width, height, width, height
        corners = box_convert(boxes, "cxcywh", "xyxy").gather(1, queries[..., None].expand(-1, -1, 4)) * size
        return scores, labels, corners

    def _nms(self, result: dict[str, Tensor]) -> dict[str, Tensor]:
        keep = batched_nms(result["boxes"], result["scores"], result["labels"], self.nms_iou_threshold)
        return {name: value[keep] for name, value in result.items()}
