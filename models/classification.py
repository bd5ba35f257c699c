"""What class logits mean: how they are matched, trained and turned into detections.

B batch, S prediction sets, Q queries, K logits per query, T targets of an image, A matches.
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss


@dataclass
class FocalClassification:
    """One sigmoid per class (RetinaNet's focal loss; its matching cost from Deformable DETR, appendix A.4)."""

    alpha: float = 0.25
    gamma: float = 2.0

    def num_logits(self, num_classes: int) -> int:
        return num_classes

    def cost(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cost [B, S, Q, T] of assigning to each query (logits [B, S, Q, K]) each label [B, T] of its image."""
        prob = _of_labels(logits, labels).sigmoid()  # only the targets' classes: usually few of all classes
        negative = (1 - self.alpha) * prob**self.gamma * -(1 - prob + 1e-8).log()
        positive = self.alpha * (1 - prob)**self.gamma * -(prob + 1e-8).log()
        return positive - negative

    def loss(self, logits: Tensor, batch_idx: Tensor, query_idx: Tensor, labels: Tensor, num_boxes: Tensor) -> Tensor:
        """For each set [S] the sum over its logits [S, B, Q, K] divided by the number of boxes. The query query_idx
        [S, A] of image batch_idx [S, A] has the label labels [S, A]; all others are background.
        """
        one_hot = torch.zeros_like(logits)
        one_hot[torch.arange(len(logits), device=logits.device)[:, None], batch_idx, query_idx, labels] = 1
        losses = sigmoid_focal_loss(logits, one_hot, alpha=self.alpha, gamma=self.gamma)
        return losses.sum((1, 2, 3)) / num_boxes

    def diagnostics(self, logits: Tensor, counts: list[int]) -> dict[str, Tensor]:
        """Further values for the log; counts are the numbers of targets of the B images."""
        return {}

    def top_detections(self, logits: Tensor, num_select: int) -> tuple[Tensor, Tensor, Tensor]:
        """The `num_select` (query, class) pairs of each image with the highest scores: scores, labels and queries, each
        [B, n].
        """
        scores, pairs = logits.sigmoid().flatten(1).topk(min(num_select, logits[0].numel()), dim=1)
        return scores, pairs % logits.shape[-1], pairs // logits.shape[-1]


def _of_labels(scores: Tensor, labels: Tensor) -> Tensor:
    """Scores [B, S, Q, K] of the labels [B, T] of each image: [B, S, Q, T]."""
    return scores.gather(-1, labels[:, None, None].expand(*scores.shape[:3], -1))


@dataclass
class SoftmaxClassification:
    """One softmax over the classes and, as the last logit, "no object" (DETR, section 3.1).

    eos_coef: weight of the queries without an object in the cross-entropy; the others have weight 1.
    """

    eos_coef: float = 0.1

    def num_logits(self, num_classes: int) -> int:
        return num_classes + 1

    def cost(self, logits: Tensor, labels: Tensor) -> Tensor:
        """See FocalClassification; the probability of the label, negated."""
        return -_of_labels(logits.softmax(-1), labels)

    def loss(self, logits: Tensor, batch_idx: Tensor, query_idx: Tensor, labels: Tensor, num_boxes: Tensor) -> Tensor:
        """See FocalClassification; for each set the weighted mean over its queries: num_boxes is ignored."""
        no_object = logits.shape[-1] - 1
        classes = torch.full(logits.shape[:3], no_object, device=logits.device)
        classes[torch.arange(len(logits), device=logits.device)[:, None], batch_idx, query_idx] = labels
        weight = logits.new_ones(no_object + 1)
        weight[no_object] = self.eos_coef
        losses = F.cross_entropy(logits.movedim(-1, 1), classes, weight, reduction="none")
        return losses.sum((1, 2)) / weight[classes].sum((1, 2))

    def diagnostics(self, logits: Tensor, counts: list[int]) -> dict[str, Tensor]:
        """"cardinality_error": the absolute difference between the number of queries with an object and the number of
        targets, a mean over B.
        """
        predicted = (logits.argmax(-1) != logits.shape[-1] - 1).sum(1)
        expected = torch.tensor(counts).to(predicted.device, non_blocking=True)
        return {"cardinality_error": (predicted - expected).abs().to(logits.dtype).mean()}

    def top_detections(self, logits: Tensor, num_select: int) -> tuple[Tensor, Tensor, Tensor]:
        """The most probable class of each query, in the order of the queries: `num_select` is ignored."""
        scores, labels = logits.softmax(-1)[..., :-1].max(-1)
        return scores, labels, torch.arange(logits.shape[1], device=logits.device).expand_as(labels)


Classification = FocalClassification | SoftmaxClassification
