import pytest
import torch

from tools.peers import CONTENDERS, chosen
from util.errors import UserError


def test_detectors_are_chosen_by_parts_of_their_names():
    assert chosen([]) == CONTENDERS
    assert [c.name for c in chosen(["rt-detr", "D-fine"])] == ["RT-DETR R50", "D-FINE-L"]
    with pytest.raises(UserError, match="no detector here has 'yolo'"):
        chosen(["DETR", "yolo"])


@pytest.mark.slow
def test_every_detector_runs_at_equal_pixels():
    pytest.importorskip("transformers")
    for found in CONTENDERS:
        with torch.no_grad():
            logits, boxes = found.build().eval()(torch.rand(1, 3, 256, 320))
        assert logits.shape[:2] == boxes.shape[:2] and boxes.shape[-1] == 4, found.name
        assert 0 <= boxes.min() and boxes.max() <= 1, found.name
