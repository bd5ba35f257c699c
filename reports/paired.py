"""Differences between runs in pairs: what both runs of a pair share, such as the seed, does not count in them."""
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import t as student

CONFIDENCE = 0.95
ENOUGH = 5  # pairs; with fewer, Student's t is so wide (12.7 standard errors for two) that only luck decides


@dataclass(frozen=True)
class PairedDifference:
    """mean: of the pairs' differences. low, high: the interval that holds their true mean in 95 % of such experiments
    (Student's t; differences that are normally distributed); infinite for a single pair."""

    pairs: int
    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """In words, where more is better."""
        if self.pairs < ENOUGH:
            return f"undecided: {self.pairs} of {ENOUGH} seeds"
        return "better" if self.low > 0 else "worse" if self.high < 0 else "undecided"


def paired_difference(differences: Sequence[float]) -> PairedDifference:
    """Of at least one difference."""
    pairs, mean = len(differences), statistics.fmean(differences)
    if pairs == 1:
        return PairedDifference(1, mean, -math.inf, math.inf)
    error = statistics.stdev(differences) / math.sqrt(pairs)
    half = float(student.ppf((1 + CONFIDENCE) / 2, pairs - 1)) * error
    return PairedDifference(pairs, mean, mean - half, mean + half)
