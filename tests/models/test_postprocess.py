import pytest
import torch

from models.postprocess import PostProcess


def outputs(probabilities, boxes):
    return {"pred_logits": torch.logit(torch.tensor(probabilities)), "pred_boxes": torch.tensor(boxes)}


PROBABILITIES = [[[0.9, 0.1, 0.3], [0.2, 0.8, 0.7]], [[0.5, 0.4, 0.1], [0.3, 0.6, 0.2]]]
BOXES = [[[0.5, 0.5, 0.2, 0.4], [0.25, 0.5, 0.5, 1.0]], [[0.5, 0.5, 1.0, 1.0], [0.1, 0.9, 0.2, 0.2]]]
SIZES = torch.tensor([[100, 200], [400, 300]])  # (height, width)


def test_best_pairs_of_query_and_class():
    """A query may give several detections, of different classes."""
    first, second = PostProcess(num_select=3)(outputs(PROBABILITIES, BOXES), SIZES)
    torch.testing.assert_close(first["scores"], torch.tensor([0.9, 0.8, 0.7]))
    assert first["labels"].tolist() == [0, 1, 2]
    torch.testing.assert_close(first["boxes"], torch.tensor([[80.0, 30, 120, 70], [0, 0, 100, 100], [0, 0, 100, 100]]))
    torch.testing.assert_close(second["scores"], torch.tensor([0.6, 0.5, 0.4]))
    assert second["labels"].tolist() == [1, 0, 1]
    torch.testing.assert_close(second["boxes"], torch.tensor([[0.0, 320, 60, 400], [0, 0, 300, 400], [0, 0, 300, 400]]))


@pytest.mark.parametrize("num_select, expected", [(1, 1), (6, 6), (300, 6)])
def test_at_most_all_pairs(num_select, expected):
    for result in PostProcess(num_select)(outputs(PROBABILITIES, BOXES), SIZES):
        assert {len(x) for x in result.values()} == {expected}
        assert (result["scores"].diff() <= 0).all()


def test_nms_is_class_wise():
    # The IoUs of the second and third box with the first are 0.8 and 0.5.
    boxes = [[[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 0.4], [0.5, 0.5, 0.5, 0.25]]]
    probabilities = [[[0.9, 0.6], [0.8, 0.1], [0.7, 0.05]]]
    size = torch.tensor([[100, 100]])
    result, = PostProcess(4, nms_iou_threshold=0.7)(outputs(probabilities, boxes), size)
    assert result["scores"].tolist() == pytest.approx([0.9, 0.7, 0.6])
    assert result["labels"].tolist() == [0, 0, 1]
    torch.testing.assert_close(result["boxes"][1], torch.tensor([25, 37.5, 75, 62.5]))
    result, = PostProcess(4, nms_iou_threshold=0.4)(outputs(probabilities, boxes), size)
    assert result["scores"].tolist() == pytest.approx([0.9, 0.6])
    result, = PostProcess(4, nms_iou_threshold=-1)(outputs(probabilities, boxes), size)
    assert len(result["scores"]) == 4


def test_sizes_of_any_type():
    integer, = PostProcess(2)(outputs(PROBABILITIES[:1], BOXES[:1]), torch.tensor([[100, 200]]))
    real, = PostProcess(2)(outputs(PROBABILITIES[:1], BOXES[:1]), torch.tensor([[100.0, 200.0]], dtype=torch.float64))
    assert integer["boxes"].dtype == real["boxes"].dtype == torch.float32
    assert torch.equal(integer["boxes"], real["boxes"])


def test_no_gradient():
    given = outputs(PROBABILITIES, BOXES)
    given["pred_boxes"].requires_grad_()
    assert not PostProcess(3)(given, SIZES)[0]["boxes"].requires_grad
