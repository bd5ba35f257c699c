import math

import numpy as np
import pytest
from scipy import stats

from reports.paired import ENOUGH, paired_difference


def test_the_interval_is_students():
    differences = [1.2, -0.4, 0.9, 2.1, 0.7, 0.3]
    found = paired_difference(differences)
    interval = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert found.pairs == 6 and found.mean == pytest.approx(np.mean(differences), abs=1e-15)
    assert (found.low, found.high) == pytest.approx(tuple(interval), abs=1e-12)


def test_by_hand():
    found = paired_difference([1.0, 2.0, 3.0, 4.0, 5.0])  # deviation 1.5811, error 0.7071, t(0.975, 4) = 2.7764
    assert found.mean == 3.0 and found.low == pytest.approx(1.0368, abs=1e-4)
    assert found.high == pytest.approx(4.9632, abs=1e-4)


def test_one_pair_says_nothing_of_how_far_pairs_differ():
    found = paired_difference([0.4])
    assert (found.pairs, found.mean, found.low, found.high) == (1, 0.4, -math.inf, math.inf)
    assert found.verdict == f"undecided: 1 of {ENOUGH} seeds"


@pytest.mark.parametrize("differences, verdict", [
    ([0.1, 0.2, 0.1, 0.2, 0.1], "better"), ([-0.1, -0.2, -0.1, -0.2, -0.1], "worse"),
    ([0.1, -0.2, 0.1, 0.2, 0.1], "undecided"), ([0.1, 0.2, 0.1, 0.2], "undecided: 4 of 5 seeds"),
    ([0.0] * 5, "undecided"), ([0.25] * 5, "better"),
])
def test_the_verdict_is_that_of_the_interval(differences, verdict):
    assert paired_difference(differences).verdict == verdict
