"""The clamped logit, and the overlap of boxes."""
import math

import pytest
import torch
from torchvision.ops import box_convert, box_iou, generalized_box_iou

from util.box_ops import corners, giou, giou_and_iou, inverse_sigmoid, iou, pairwise_giou, pairwise_iou


def test_it_inverts_the_sigmoid():
    x = torch.linspace(-6, 6, 25, dtype=torch.float64)
    torch.testing.assert_close(inverse_sigmoid(x.sigmoid()), x)


@pytest.mark.parametrize("eps", [1e-3, 1e-5])
def test_ends_and_beyond_are_finite(eps):
    y = inverse_sigmoid(torch.tensor([-5.0, 0.0, 1.0, 5.0], dtype=torch.float64), eps)
    torch.testing.assert_close(y, y.new_tensor([-1, -1, 1, 1]) * -math.log(eps))


def test_eps_defaults_to_that_of_dino():
    assert inverse_sigmoid(torch.tensor(0.0)).item() == pytest.approx(math.log(1e-3))


def test_gradients_are_finite_everywhere():
    x = torch.tensor([0.0, 1e-4, 0.5, 1 - 1e-4, 1.0, 2.0], requires_grad=True)
    inverse_sigmoid(x).sum().backward()
    assert x.grad.isfinite().all() and x.grad[2].item() == pytest.approx(4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtype_and_input_stay(dtype):
    x = torch.tensor([[0.2, 1.5]], dtype=dtype)
    before = x.clone()
    y = inverse_sigmoid(x)
    assert y.dtype == dtype and y.shape == x.shape and torch.equal(x, before)


def random_boxes(*size):
    upper_left, lower_right = torch.rand(*size, 2, 2, dtype=torch.float64).sort(-2).values.unbind(-2)
    return torch.cat([(upper_left + lower_right) / 2, lower_right - upper_left], -1)


def as_xyxy(boxes):
    return box_convert(boxes, "cxcywh", "xyxy")


def test_corners():
    boxes = random_boxes(3, 7)
    torch.testing.assert_close(torch.cat(corners(boxes), -1), as_xyxy(boxes))


@pytest.mark.parametrize("found, wanted", [(pairwise_giou, generalized_box_iou), (pairwise_iou, box_iou)])
def test_pairs_are_those_of_each_image(found, wanted):
    """Of random boxes: apart, overlapping and one inside the other."""
    torch.manual_seed(0)
    a, b = random_boxes(2, 3, 40), random_boxes(2, 1, 30)
    values = found(a, b)
    assert values.shape == (2, 3, 40, 30)
    for image in range(2):
        for s in range(3):
            torch.testing.assert_close(values[image, s], wanted(as_xyxy(a[image, s]), as_xyxy(b[image, 0])))


def test_both_at_once():
    """As one by one; only the GIoU has a gradient, that of torchvision's."""
    torch.manual_seed(0)
    a, b = random_boxes(50).requires_grad_(), random_boxes(50)
    gious, ious = giou_and_iou(a, b, 1e-6)
    torch.testing.assert_close(gious, giou(a, b, 1e-6))
    torch.testing.assert_close(ious, iou(a, b))
    assert not ious.requires_grad
    found, = torch.autograd.grad(giou(a, b).sum(), a)
    wanted, = torch.autograd.grad(generalized_box_iou(as_xyxy(a), as_xyxy(b)).diag().sum(), a)
    torch.testing.assert_close(found, wanted)


def test_boxes_that_touch_and_tiny_ones():
    boxes = torch.tensor([[0.5, 0.5, 1, 1], [1.5, 0.5, 1, 1], [0.50005, 0.50005, 1e-4, 1e-4]], dtype=torch.float64)
    torch.testing.assert_close(pairwise_giou(boxes, boxes), generalized_box_iou(as_xyxy(boxes), as_xyxy(boxes)))
    assert pairwise_giou(boxes, boxes[:0]).shape == (3, 0)
    assert pairwise_iou(boxes, boxes[:0]).shape == (3, 0)


def test_giou_with_a_constant():
    """Boxes of 2 x 2 px in an image of 800 x 800, the second 1 px to the right: union 6 px, hull 6 px, common 2 px."""
    a = torch.tensor([11, 11, 2, 2], dtype=torch.float64) / 800
    b = torch.tensor([12, 11, 2, 2], dtype=torch.float64) / 800
    pixel = 1 / 800**2
    assert giou(a, b).item() == pytest.approx(2 / 6)
    assert giou(a, b, 1e-6).item() == pytest.approx(2 * pixel / (6 * pixel + 1e-6)) == pytest.approx(0.3012, abs=1e-4)
    apart = b + torch.tensor([2, 0, 0, 0]) / 800  # union 8 px, hull 10 px, nothing in common
    assert giou(a, apart, 1e-6).item() == pytest.approx(-2 * pixel / (10 * pixel + 1e-6))
    assert giou(a, a, 1e-6).item() == pytest.approx(4 * pixel / (4 * pixel + 1e-6))
    torch.testing.assert_close(pairwise_giou(a[None], b[None], 1e-6)[0, 0], giou(a, b, 1e-6))
    empty = torch.zeros(4, dtype=torch.float64)
    assert giou(empty, empty).isnan() and giou(empty, empty, 1e-6) == 0
    assert iou(empty, empty) == 0
