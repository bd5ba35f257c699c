"""What class logits mean: how they are matched, trained and turned into detections.

B batch, S prediction sets, Q queries, K logits per query, T targets of an image, A matches.
"""
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss


@dataclass
class ClassMatch:
    """The matches of S prediction sets: query query_idx [S, A] of image batch_idx [S, A] has the label labels [S, A],
    and its box the IoU iou [S, A] with the target's, without gradient."""

    batch_idx: Tensor
    query_idx: Tensor
    labels: Tensor
    iou: Tensor

    @property
    def place(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Indices of the matched logits in [S, B, Q, K]."""
        sets = torch.arange(len(self.labels), device=self.labels.device)[:, None]
        return sets, self.batch_idx, self.query_idx, self.labels

    def best_iou(self, images: int) -> Tensor:
        """The largest IoU among the matches of the same set and image: [S, A]. images: B."""
        best = self.iou.new_zeros(len(self.iou), images)
        return best.scatter_reduce(1, self.batch_idx, self.iou, "amax").gather(1, self.batch_idx)


@dataclass
class FocalClassification:
    """One sigmoid per class (RetinaNet's focal loss; its matching cost from Deformable DETR, appendix A.4).

    position_cost: the matching cost is made of the probability times the square root of the GIoU, scaled to [0, 1]
    (Stable-DINO, section 3.3).
    """

    alpha: float = 0.25
    gamma: float = 2.0
    position_cost: bool = False

    def num_logits(self, num_classes: int) -> int:
        return num_classes

    def cost(self, logits: Tensor, labels: Tensor, giou: Tensor) -> Tensor:
        """Cost [B, S, Q, T] of assigning to each query (logits [B, S, Q, K]) each label [B, T] of its image.
        giou [B, S, Q, T]: of their boxes."""
        prob = self.prob(logits, labels)
        if self.position_cost:
            prob = prob * ((giou + 1) / 2).clamp(0, 1).sqrt()
        negative = (1 - self.alpha) * prob**self.gamma * -(1 - prob + 1e-8).log()
        positive = self.alpha * (1 - prob)**self.gamma * -(prob + 1e-8).log()
        return positive - negative

    def prob(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The probability [B, S, Q, T] of the labels [B, T] of each image, from logits [B, S, Q, K]."""
        return _of_labels(logits, labels).sigmoid()  # only the targets' classes: usually few of all classes

    def loss(self, logits: Tensor, match: ClassMatch, num_boxes: Tensor) -> Tensor:
        """For each set [S] the sum over its logits [S, B, Q, K] divided by the number of boxes. Queries without a match
        are background."""
        one_hot = torch.zeros_like(logits)
        one_hot[match.place] = 1
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


@dataclass(frozen=True)
class IoURule:
    """What the logit of a match learns, from its probability p, the IoU u of its box and the best IoU b of its image:
    BCE(logit, target(p, u, b)) with a weight; all other logits learn 0. Weights and targets have no gradient.

    matched(p, target): weight of matches; background(p): of the other logits.
    """

    target: Callable[[Tensor, Tensor, Tensor], Tensor]
    matched: Callable[[Tensor, Tensor], Tensor]
    background: Callable[[Tensor], Tensor]


IOU_RULES = {
    # VarifocalNet, section 3.2, as RT-DETR has it.
    "vfl": IoURule(lambda p, u, b: u, lambda p, t: t, lambda p: 0.75 * p**2),
    # Align-DETR, section 3.2.
    "ia_bce": IoURule(lambda p, u, b: p**0.25 * u**0.75, lambda p, t: torch.ones_like(t), lambda p: p**2),
    # DEIM, section 3.3.
    "mal": IoURule(lambda p, u, b: u**1.5, lambda p, t: torch.ones_like(t), lambda p: p**1.5),
    # Stable-DINO, section 3.2: squared IoUs, rescaled so that the best of an image stays as it is.
    "position": IoURule(lambda p, u, b: u**2 / b.clamp(min=1e-6), lambda p, t: 0.25 * (t - p).abs()**2,
                        lambda p: 0.75 * p**2),
}


@dataclass
class IoUAwareClassification(FocalClassification):
    """One sigmoid per class that learns how well the box fits, not only whether there is an object.

    target_cost: the matching cost is what a match would add to the loss, by the rule's own target. The GIoU, where it
    is positive, stands for the IoU.
    """

    rule: IoURule = IOU_RULES["mal"]
    target_cost: bool = False

    def cost(self, logits: Tensor, labels: Tensor, giou: Tensor) -> Tensor:
        """See FocalClassification."""
        if not self.target_cost:
            return super().cost(logits, labels, giou)
        chosen, ious = _of_labels(logits, labels), giou.clamp(min=0)
        prob = chosen.sigmoid()
        target = self.rule.target(prob, ious, ious.amax((2, 3), keepdim=True))
        matched = self.rule.matched(prob, target) * (F.softplus(chosen) - target * chosen)
        return matched - self.rule.background(prob) * F.softplus(chosen)

    def loss(self, logits: Tensor, match: ClassMatch, num_boxes: Tensor) -> Tensor:
        """See FocalClassification."""
        with torch.no_grad():
            prob = logits.sigmoid()
            targets, weights = torch.zeros_like(logits), self.rule.background(prob)
            matched = prob[match.place]
            ious = (match.iou.to(logits.dtype), match.best_iou(logits.shape[1]).to(logits.dtype))
            target = self.rule.target(matched, *ious)
            targets[match.place], weights[match.place] = target, self.rule.matched(matched, target)
        losses = F.binary_cross_entropy_with_logits(logits, targets, weights, reduction="none")
        return losses.sum((1, 2, 3)) / num_boxes


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

    def cost(self, logits: Tensor, labels: Tensor, giou: Tensor) -> Tensor:
        """See FocalClassification; the probability of the label, negated."""
        return -self.prob(logits, labels)

    def prob(self, logits: Tensor, labels: Tensor) -> Tensor:
        """See FocalClassification."""
        return _of_labels(logits.softmax(-1), labels)

    def loss(self, logits: Tensor, match: ClassMatch, num_boxes: Tensor) -> Tensor:
        """See FocalClassification; for each set the weighted mean over its queries: num_boxes is ignored."""
        no_object = logits.shape[-1] - 1
        classes = torch.full(logits.shape[:3], no_object, device=logits.device)
        classes[match.place[:3]] = match.labels
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
