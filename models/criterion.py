"""The set loss of DETR and its successors: classification, L1 and GIoU over every prediction set.

B batch, Q queries, K classes, A matches.
"""
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.classification import Classification, ClassMatch
from models.denoising import DenoisingMeta
from models.heads import Predictions
from models.matcher import HungarianMatcher, OneToManyMatcher
from util.box_ops import giou_and_iou
from util.distributed import all_reduce_mean


@dataclass
class LossWeights:
    """Weights of the three losses, and relative to the decoder's those of the encoder's proposals (`interm`), of all
    its tokens as proposals (`enc`) and of the one-to-many branch. None: the detector has no such part.
    """

    cls: float
    bbox: float
    giou: float
    interm: float | None = None
    interm_boxes: bool = True
    enc: float | None = None
    one2many: float | None = None


@dataclass
class MatchedSets:
    """S prediction sets of one size, by the suffix of their losses, and what each of their queries is matched to."""

    sets: dict[str, Predictions]
    labels: Tensor  # [T] of the targets of the whole batch
    boxes: Tensor  # [T, 4]
    matches: Tensor  # [S, 3, A] as Matching.indices
    num_boxes: Tensor  # what the losses are divided by
    non_finite: int = 0  # see Matching

    def pairs(self) -> tuple[Tensor, Tensor]:
        """The matched boxes of all sets, one set after the other, and the boxes of their targets: each [S * A, 4]."""
        predicted = torch.stack([s["pred_boxes"] for s in self.sets.values()])
        batch_idx, query_idx, target_idx = self.matches.unbind(1)
        index = torch.arange(len(self.sets), device=batch_idx.device)[:, None]
        return predicted[index, batch_idx, query_idx].flatten(0, 1), self.boxes[target_idx].flatten(0, 1)


class SetCriterion(nn.Module):
    """Losses of the last layer ("loss_ce", "loss_bbox", "loss_giou"), of the layers before it ("_0" ...) and, where
    the detector has them, of the encoder's proposals ("_interm"), of the denoising queries ("_dn", "_dn_0" ...), of all
    tokens of the encoder, which only find objects ("_enc"; Deformable DETR, appendix A.4), and of one-to-many
    supervision ("_one2many", "_0_one2many" ...): a branch finds every object `copies` times (H-DETR, section 3.2) or,
    with a `shared` matcher, further heads up to so many times (MS-DETR, section 3.2).

    For the last layer also "loss_xy" and "loss_hw" (the L1 loss by coordinate), "class_error" (% of matched queries
    whose most probable class is wrong) and the classification's own, which are only logged: `weight_dict` names what is
    trained on. In training "non_finite_costs" counts the images that the matcher found no finite costs for.
    """

    def __init__(self, matcher: HungarianMatcher, weights: LossWeights,
                 num_layers: int, classification: Classification, use_dn: bool, aux_loss: bool = True,
                 copies: int = 1, shared: OneToManyMatcher | None = None):
        super().__init__()
        self.matcher = matcher
        self.shared = shared
        self.classification = classification
        self.copies = copies
        base = {"loss_ce": weights.cls, "loss_bbox": weights.bbox, "loss_giou": weights.giou}
        layers = [""] + [f"_{i}" for i in range(num_layers - 1)] if aux_loss else [""]
        self.weight_dict: dict[str, float] = {}
        for suffix in layers:
            self.weight_dict.update({name + suffix: w for name, w in base.items()})
            if use_dn:
                self.weight_dict.update({f"{name}_dn{suffix}": w for name, w in base.items()})
            if weights.one2many is not None:
                self.weight_dict.update({f"{name}{suffix}_one2many": w * weights.one2many for name, w in base.items()})
        if weights.enc is not None:
            self.weight_dict.update({f"{name}_enc": w * weights.enc for name, w in base.items()})
        if weights.interm is not None:
            box_weight = weights.interm if weights.interm_boxes else 0.0
            self.weight_dict["loss_ce_interm"] = weights.cls * weights.interm
            self.weight_dict.update({f"{name}_interm": base[name] * box_weight for name in ("loss_bbox", "loss_giou")})

    def forward(self, outputs: dict, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """outputs as a detector returns them; targets with "labels" [n] and "boxes" [n, 4] cxcywh in [0, 1].

        The losses (for the classification's, see there) are sums over the queries divided by the number of boxes: in
        training, the mean number of all processes' batches, since DDP averages gradients.
        """
        labels, boxes = _concatenated(targets, outputs["pred_boxes"].dtype)
        num_boxes = boxes.new_full((), len(boxes))
        # Evaluation must not wait for other processes: they may have fewer images.
        num_boxes = (all_reduce_mean(num_boxes) if self.training else num_boxes).clamp(min=1)

        sets = {"": outputs}
        sets.update({f"_{i}": aux for i, aux in enumerate(outputs.get("aux_outputs", []))})
        if "interm_outputs" in outputs:
            sets["_interm"] = outputs["interm_outputs"]
        groups = [self._matched(sets, targets, num_boxes)]

        meta: DenoisingMeta | None = outputs.get("dn_meta")
        if meta is not None:
            match = _denoising_match(meta, [len(t["labels"]) for t in targets], boxes.device)
            noised = {"_dn" + suffix: predicted for suffix, predicted in outputs["dn_outputs"].items()}
            groups.append(MatchedSets(noised, labels, boxes, match.expand(len(noised), -1, -1),
                                      num_boxes * meta.num_groups))
        if "enc_outputs" in outputs:
            objects = [t | {"labels": torch.zeros_like(t["labels"])} for t in targets]
            groups.append(self._matched({"_enc": outputs["enc_outputs"]}, objects, num_boxes))
        if "one2many_outputs" in outputs:
            groups += self._one_to_many(outputs["one2many_outputs"], targets, num_boxes)
        losses = self._losses(groups)
        losses |= self._diagnostics(outputs, labels, boxes, groups[0].matches[0], num_boxes)
        losses |= self.classification.diagnostics(outputs["pred_logits"], [len(t["labels"]) for t in targets])
        if self.training:  # a batch without targets has no denoising, yet all processes log the same names
            losses |= {name: boxes.new_zeros(()) for name in self.weight_dict if name not in losses}
            losses["non_finite_costs"] = boxes.new_full((), sum(group.non_finite for group in groups))
        return losses

    def _matched(self, sets: dict[str, Predictions], targets: list[dict[str, Tensor]],
                 num_boxes: Tensor) -> MatchedSets:
        """Prediction sets by suffix, each matched to the targets."""
        labels, boxes = _concatenated(targets, next(iter(sets.values()))["pred_boxes"].dtype)
        matching = self.matcher(list(sets.values()), targets)
        return MatchedSets(sets, labels, boxes, matching.indices, num_boxes, matching.non_finite)

    def _one_to_many(self, layers: dict[str, Predictions], targets: list[dict[str, Tensor]],
                     num_boxes: Tensor) -> list[MatchedSets]:
        """The predictions of layers by suffix. As published, the losses of a branch are divided by the number of copies
        of the boxes, those of further heads by the number of boxes."""
        sets = {f"{suffix}_one2many": layer for suffix, layer in layers.items()}
        if self.shared is None:
            repeated = [t | {name: torch.cat([t[name]] * self.copies) for name in ("labels", "boxes")} for t in targets]
            return [self._matched(sets, repeated, num_boxes * self.copies)]
        labels, boxes = _concatenated(targets, layers[""]["pred_boxes"].dtype)
        return [MatchedSets({suffix: layer}, labels, boxes, self.shared(layer, targets)[None], num_boxes)
                for suffix, layer in sets.items()]  # one by one: their numbers of matches differ

    def _losses(self, groups: list[MatchedSets]) -> dict[str, Tensor]:
        """The losses of all sets, computed side by side: one after another, they would be a thousand small kernels, and
        a GPU would wait for their launches."""
        predicted, targets = (torch.cat(boxes) for boxes in zip(*(group.pairs() for group in groups)))
        l1 = (predicted - targets).abs().sum(-1)
        gious, ious = giou_and_iou(predicted, targets, self.matcher.giou_eps)
        counts = [group.matches[:, 0].numel() for group in groups]
        losses: dict[str, Tensor] = {}
        for group, *values in zip(groups, l1.split(counts), (1 - gious).split(counts), ious.split(counts)):
            shape = len(group.sets), -1 if group.matches.shape[-1] else 0
            bbox, box_giou, iou = (x.view(shape) for x in values)
            logits = torch.stack([s["pred_logits"] for s in group.sets.values()])
            batch_idx, query_idx, target_idx = group.matches.unbind(1)
            match = ClassMatch(batch_idx, query_idx, group.labels[target_idx], iou)
            by_name = {"loss_ce": self.classification.loss(logits, match, group.num_boxes),
                       "loss_bbox": bbox.sum(1) / group.num_boxes, "loss_giou": box_giou.sum(1) / group.num_boxes}
            losses |= {name + suffix: loss for name, by_set in by_name.items()
                       for suffix, loss in zip(group.sets, by_set.unbind())}
        return losses

    @staticmethod
    @torch.no_grad()
    def _diagnostics(predicted: dict[str, Tensor], labels: Tensor, boxes: Tensor, match: Tensor,
                     num_boxes: Tensor) -> dict[str, Tensor]:
        batch_idx, query_idx, target_idx = match
        wrong = predicted["pred_logits"][batch_idx, query_idx].argmax(-1) != labels[target_idx]
        l1 = (predicted["pred_boxes"][batch_idx, query_idx] - boxes[target_idx]).abs().sum(0) / num_boxes
        return {"class_error": 100 * wrong.to(l1.dtype).sum() / max(len(wrong), 1),
                "loss_xy": l1[:2].sum(), "loss_hw": l1[2:].sum()}


def weighted_sum(losses: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """The loss to minimise: the sum of the losses that have a weight, each times its weight."""
    by_weight: dict[float, list[Tensor]] = {}
    for name, loss in losses.items():
        if name in weights:
            by_weight.setdefault(weights[name], []).append(loss)
    terms = [weight * torch.stack(same).sum() for weight, same in by_weight.items()]
    return sum(terms[1:], terms[0])


def _concatenated(targets: list[dict[str, Tensor]], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Labels [T] and boxes [T, 4] of the whole batch."""
    return torch.cat([t["labels"] for t in targets]), torch.cat([t["boxes"] for t in targets]).to(dtype)


def _denoising_match(meta: DenoisingMeta, counts: list[int], device: torch.device) -> Tensor:
    """[3, A] as the matcher's: the positive queries of every group with the targets that they were made from."""
    batch_idx = torch.cat([torch.full((n,), i) for i, n in enumerate(counts)])
    target_idx = torch.arange(len(batch_idx))
    idx_in_group = torch.cat([torch.arange(n) for n in counts])
    group = torch.arange(meta.num_groups).repeat_interleave(len(batch_idx))
    query_idx = group * meta.group_size + idx_in_group.repeat(meta.num_groups)
    match = torch.stack([batch_idx.repeat(meta.num_groups), query_idx, target_idx.repeat(meta.num_groups)])
    return match.to(device, non_blocking=True)
