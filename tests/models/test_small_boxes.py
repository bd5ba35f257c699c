"""One training step on objects of 2 to 30 px in an image of 800, against the losses written out from their definition.

At that size the constant that DINO adds to the areas of a GIoU decides: leaving it out or adding another must show.
"""
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment

from models.criterion import weighted_sum

SIDES = torch.tensor([2, 3, 4, 6, 8, 12, 20, 30]) / 800
WEIGHTS = {"ce": 1.0, "bbox": 5.0, "giou": 2.0}


def small_targets(count=8):
    generator = torch.Generator().manual_seed(5)
    targets = []
    for _ in range(2):
        sides = torch.stack([SIDES[:count], SIDES[:count].flip(0)], 1)[torch.randperm(count, generator=generator)]
        centres = torch.rand(count, 2, generator=generator) * 0.8 + 0.1
        targets.append({"labels": torch.randint(7, (count,), generator=generator),
                        "boxes": torch.cat([centres, sides], 1).double()})
    return targets


def giou(a, b, eps):
    """Of boxes cxcywh that broadcast, as the papers' code writes it."""
    low = [box[..., :2] - box[..., 2:] / 2 for box in (a, b)]
    high = [box[..., :2] + box[..., 2:] / 2 for box in (a, b)]
    inter = (torch.minimum(*high) - torch.maximum(*low)).clamp(min=0).prod(-1)
    union = a[..., 2:].prod(-1) + b[..., 2:].prod(-1) - inter
    hull = (torch.maximum(*high) - torch.minimum(*low)).prod(-1)
    return inter / (union + eps) - (hull - union) / (hull + eps)


def focal(logits, positive):
    p = logits.sigmoid()
    ce = F.binary_cross_entropy_with_logits(logits, positive, reduction="none")
    right = p * positive + (1 - p) * (1 - positive)
    return ((0.25 * positive + 0.75 * (1 - positive)) * (1 - right)**2 * ce).sum()


def hungarian(logits, boxes, target, eps):
    """(queries, targets) of an image."""
    with torch.no_grad():
        p = logits.sigmoid()[:, target["labels"]]
        cost = 2 * (0.25 * (1 - p)**2 * -(p + 1e-8).log() - 0.75 * p**2 * -(1 - p + 1e-8).log())
        cost = cost + 5 * (boxes[:, None] - target["boxes"]).abs().sum(-1)
        return linear_sum_assignment(cost - 2 * giou(boxes[:, None], target["boxes"], eps))


def set_loss(predicted, targets, matches, num_boxes, eps):
    total = 0.0
    for logits, boxes, target, (queries, objects) in zip(predicted["pred_logits"], predicted["pred_boxes"], targets,
                                                         matches, strict=True):
        positive = torch.zeros_like(logits)
        positive[queries, target["labels"][objects]] = 1
        matched, wanted = boxes[queries], target["boxes"][objects]
        total = total + (WEIGHTS["ce"] * focal(logits, positive) + WEIGHTS["bbox"] * (matched - wanted).abs().sum()
                         + WEIGHTS["giou"] * (1 - giou(matched, wanted, eps)).sum())
    return total / num_boxes


def slow_loss(outputs, targets, eps):
    """The loss of a DINO or Deformable DETR by its definition, one image and prediction set at a time."""
    num_boxes = sum(len(t["labels"]) for t in targets)
    sets = [outputs, *outputs.get("aux_outputs", []), *([outputs["interm_outputs"]] if "interm_outputs" in outputs
                                                       else [])]
    total = sum(set_loss(s, targets, [hungarian(logits, boxes, t, eps) for logits, boxes, t in
                                      zip(s["pred_logits"], s["pred_boxes"], targets, strict=True)], num_boxes, eps)
                for s in sets)
    meta = outputs.get("dn_meta")
    for noised in outputs.get("dn_outputs", {}).values():
        matches = []
        for target in targets:
            count = len(target["labels"])
            matches.append(([group * meta.group_size + i for group in range(meta.num_groups) for i in range(count)],
                            [i for _ in range(meta.num_groups) for i in range(count)]))
        total = total + set_loss(noised, targets, matches, num_boxes * meta.num_groups, eps)
    return total


def step(build, loss_of):
    """The gradients of a step and the weights after it, by name."""
    model, criterion, _ = build()
    model.double().train()
    torch.manual_seed(2)
    images = [torch.randn(3, 64, 96, dtype=torch.float64) for _ in range(2)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-4)
    torch.set_default_dtype(torch.float64)
    try:
        targets = small_targets()
        loss_of(model(images, targets), targets, criterion).backward()
    finally:
        torch.set_default_dtype(torch.float32)
    optimizer.step()
    return ({name: p.grad for name, p in model.named_parameters() if p.grad is not None},
            {name: p.detach() for name, p in model.named_parameters()})


def by_project(outputs, targets, criterion):
    return weighted_sum(criterion(outputs, targets), criterion.weight_dict)


def by_definition(eps):
    return lambda outputs, targets, _: slow_loss(outputs, targets, eps)


def distance(a, b):
    """Of two sets of tensors, relative to the second."""
    return float(sum((a[n] - b[n]).square().sum() for n in b).sqrt() / sum(b[n].square().sum() for n in b).sqrt())


@pytest.fixture
def dino(build):
    return lambda: build(cls_loss_coef=1.0, num_queries=20, dropout=0.0)


@pytest.fixture
def deformable_detr(build_deformable):
    return lambda: build_deformable(cls_loss_coef=1.0, num_queries=20, with_box_refine=True, num_classes=7)


@pytest.mark.parametrize("family, eps, others", [("dino", 1e-6, (0.0, 1e-7)), ("deformable_detr", 0.0, (1e-6,))])
def test_step_on_small_boxes(family, eps, others, request):
    build = request.getfixturevalue(family)
    gradients, weights = step(build, by_project)
    expected_gradients, expected_weights = step(build, by_definition(eps))
    assert distance(gradients, expected_gradients) < 1e-9
    assert distance(weights, expected_weights) < 1e-9
    for other in others:
        assert distance(gradients, step(build, by_definition(other))[0]) > 1e-5


def test_families(build, build_deformable, build_sdetr):
    """DINO and Lite DETR add 1e-6, in loss and matcher; DETR, Deformable DETR and SDETR add nothing."""
    assert [built[1].matcher.giou_eps for built in (build(), build(num_expansion=None))] == [1e-6, 1e-6]
    others = [build_deformable(), *(build_sdetr(name) for name in ("sdetr_r50", "detr_r50", "lite_sdetr_r50"))]
    assert [built[1].matcher.giou_eps for built in others] == [0, 0, 0, 0]
