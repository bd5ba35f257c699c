"""What LVIS and CrowdHuman say beside boxes, for tests."""
import numpy as np

from datasets.benchmark_facts import BenchmarkFacts


def some_facts():
    """Of three images with two boxes in each, and categories 1 and 5."""
    return BenchmarkFacts({1: "r", 5: "f"}, True, np.array([(2, 1), (0, 5), (0, 1)]), np.array([(1, 5)]), True,
                          np.array([0, 3, 4]))


def same_facts(one, other):
    for name in ("frequencies", "has_class_lists", "has_visible"):
        assert getattr(one, name) == getattr(other, name), name
    for name in ("negative", "not_exhaustive", "ignored"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name, strict=True)
