import os

import pytest

from tools.measuring import Setting, in_fresh_process, random_batch, take_turns
from util.errors import UserError


def test_a_config_that_is_missing_is_named():
    with pytest.raises(UserError, match="Did you mean 'r50_h3l1_2p1x3.py'?"):
        Setting("config/LiteDINO/r50_h3l1_2p1x4.py num_expansion=1").config()


def test_training_batches_have_boxes_inside_the_image():
    samples, targets = random_batch(Setting("", size=(32, 48), batch=3), num_classes=5, seed=1)
    assert samples.tensors.shape == (3, 3, 32, 48) and samples.mask is None
    for target in targets:
        centre, size = target["boxes"].split(2, -1)
        assert 1 <= len(centre) == len(target["labels"]) <= 20 and target["labels"].max() < 5
        assert (centre - size / 2).min() >= -1e-6 and (centre + size / 2).max() <= 1 + 1e-6


def test_the_number_of_boxes_can_be_chosen():
    _, targets = random_batch(Setting("", size=(32, 48), batch=2), num_classes=5, seed=1, boxes=(7, 7))
    assert [len(target["labels"]) for target in targets] == [7, 7]


def test_a_fresh_process_is_another_one():
    assert in_fresh_process(os.getpid) != os.getpid()


def test_all_take_turns_and_the_first_call_does_not_count():
    calls = []
    seconds = take_turns({name: lambda name=name: calls.append(name) for name in "ab"}, rounds=3)
    assert calls == ["a", "b"] + ["a", "b"] * 3 and [len(x) for x in seconds.values()] == [3, 3]
