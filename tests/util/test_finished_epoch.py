import pytest

from util.errors import UserError
from util.finished_epoch import FinishedEpoch, best_epochs, logged_ap


def test_what_a_checkpoint_says_of_its_epoch():
    finished = FinishedEpoch({"epoch": 3, "test_coco_eval_bbox": [0.25, 0.5]}, True)
    assert FinishedEpoch.of(finished.entries() | {"epoch": 3}, "a.pth") == finished and finished.ap == 0.25
    assert FinishedEpoch.of({"epoch": 3}, "a.pth") is None  # in the middle of an epoch
    with pytest.raises(UserError, match="a.pth: 'log' or 'is_best' is not what a training wrote"):
        FinishedEpoch.of(finished.entries() | {"epoch": 4}, "a.pth")


@pytest.mark.parametrize("stats, ap", [([0.5, 0.1], 0.5), ((0.0,), 0.0), ([-1.0], None), ([], None), (None, None),
                                       ("0.5", None), ([None], None), ([1.5], None), ([[0.5]], None)])
def test_the_ap_in_the_log(stats, ap):
    assert logged_ap({"test_coco_eval_bbox": stats}) == ap and logged_ap({}) is None


def test_of_equal_aps_the_earlier_is_better():
    aps = {0: 0.3, 1: None, 2: 0.5, 3: 0.3, 4: 0.1}
    assert [best_epochs(aps, count) for count in (0, 1, 2, 3, 9)] == [set(), {2}, {0, 2}, {0, 2, 3}, {0, 2, 3, 4}]
