import os

import torch

from datasets.coco import CocoDetection
from tools.data_probe import field, in_fork, touch


def test_fields_are_in_mb():
    assert 50 < field("status", "VmRSS") <= field("status", "VmHWM") < 10_000


def test_a_forked_process_answers():
    assert in_fork(lambda: float(os.getpid())) not in (0.0, float(os.getpid()))


def test_every_box_is_looked_at(coco_root):
    dataset, seen = CocoDetection(coco_root, "train", None), []
    boxes = dataset.boxes
    dataset.boxes = lambda index: seen.append(index) or boxes(index)
    touch(dataset)
    assert seen == list(range(8))
    assert touch(Older()) >= 0


class Older:
    """A set of an earlier version."""

    boxes, ids = {7: {"boxes": torch.zeros(1)}}, [7]

    def __len__(self):
        return 1
