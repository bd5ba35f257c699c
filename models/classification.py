"""What class logits mean: how they are matched, trained and turned into detections.

B batch, S prediction sets, Q queries, K logits a query, T targets of an image, A matches.
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss


@dataclass
class FocalClassification:
    """One sigmoid a class (RetinaNet's focal loss; its matching cost from Deformable DETR, appendix A.4)."""

    alpha: float = 0.25
    gamma: float = 2.0

    def num_logits(self, num_classes: int) -> int:
        return num_classes

    def cost(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Of giving each query [B, S, Q, K] each label [B, T] of its image: [B, S, Q, T]."""
        prob = _of_labels(logits, labels).sigmoid()  # the targets' classes alone: most others are not among them
        negative = (1 - self.alpha) * prob**self.gamma * -(1 - prob + 1e-8).log()
        positive = self.alpha * (1 - prob)**self.gamma * -(prob + 1e-8).log()
        return positive - negative

    def loss(self, logits: Tensor, image: Tensor, query: Tensor, labels: Tensor, num_boxes: Tensor) -> Tensor:
        """For each set [S] the sum over its logits [S, B, Q, K] by the number of boxes, where the queries [S, A] of the
        images [S, A] have the labels [S, A]."""
        wanted = torch.zeros_like(logits)
        wanted[torch.arange(len(logits), device=logits.device)[:, None], image, query, labels] = 1
        losses = sigmoid_focal_loss(logits, wanted, alpha=self.alpha, gamma=self.gamma)
        return losses.sum((1, 2, 3)) / num_boxes

    def diagnostics(self, logits: Tensor, counts: list[int]) -> dict[str, Tensor]:
        """Further numbers for the log; counts are the B images' numbers of targets."""
        return {}

    def best(self, logits: Tensor, num_select: int) -> tuple[Tensor, Tensor, Tensor]:
        """The `num_select` best (query, class) pairs of an image: scores, labels and queries, each [B, n]."""
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

    def loss(self, logits: Tensor, image: Tensor, query: Tensor, labels: Tensor, num_boxes: Tensor) -> Tensor:
        """See FocalClassification; of each set the weighted mean over its queries, whatever the number of boxes."""
        last = logits.shape[-1] - 1
        wanted = torch.full(logits.shape[:3], last, device=logits.device)
        wanted[torch.arange(len(logits), device=logits.device)[:, None], image, query] = labels
        weight = logits.new_ones(last + 1)
        weight[last] = self.eos_coef
        losses = F.cross_entropy(logits.movedim(-1, 1), wanted, weight, reduction="none")
        return losses.sum((1, 2)) / weight[wanted].sum((1, 2))

    def diagnostics(self, logits: Tensor, counts: list[int]) -> dict[str, Tensor]:
        """"cardinality_error": by how many the queries with an object miss the number of targets, a mean over B."""
        found = (logits.argmax(-1) != logits.shape[-1] - 1).sum(1)
        wanted = torch.tensor(counts).to(found.device, non_blocking=True)
        return {"cardinality_error": (found - wanted).abs().to(logits.dtype).mean()}

    def best(self, logits: Tensor, num_select: int) -> tuple[Tensor, Tensor, Tensor]:
        """The best class of each query, in the order of the queries: `num_select` has no say."""
        scores, labels = logits.softmax(-1)[..., :-1].max(-1)
        return scores, labels, torch.arange(logits.shape[1], device=logits.device).expand_as(labels)


Classification = FocalClassification | SoftmaxClassification
