"""What several seeds say together."""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Difference:
    """How far the mean of one sample is above that of another.

    Attributes:
        mean: of the first minus that of the second.
        low, high: the difference is above `low` with 95 % confidence, and below `high` with 95 %
            (Welch's t-test, each one-sided); infinite where a sample has one value.
        n, m: numbers of values.
    """

    mean: float
    low: float
    high: float
    n: int
    m: int

    def above(self, threshold: float = 0.0) -> bool | None:
        """Whether the difference is above a threshold; None where neither answer has 95 %."""
        if self.low > threshold:
            return True
        return False if self.high < threshold else None

    def __str__(self) -> str:
        """ "+mean [low, high]" """
        bounds = "one seed" if math.isinf(self.low) else f"{self.low:+.3g}, {self.high:+.3g}"
        return f"{self.mean:+.3g} [{bounds}]"


def difference(first: list[float], second: list[float]) -> Difference:
    """The difference of two means, with what can be said of it; see `Difference`."""
    n, m = len(first), len(second)
    mean = statistics.fmean(first) - statistics.fmean(second)
    if min(n, m) < 2:
        return Difference(mean, -math.inf, math.inf, n, m)
    if statistics.pvariance(first) == statistics.pvariance(second) == 0:
        return Difference(mean, mean, mean, n, m)
    from scipy.stats import ttest_ind

    with warnings.catch_warnings():
        # A constant, to compare with a number, loses all precision in its variance, which is 0.
        warnings.filterwarnings("ignore", "Precision loss", RuntimeWarning)
        # Both ends of 90 % leave out 5 % each.
        bounds = ttest_ind(first, second, equal_var=False).confidence_interval(0.9)
    return Difference(mean, float(bounds.low), float(bounds.high), n, m)


def all_hold(verdicts: Iterable[bool | None]) -> bool | None:
    """Whether all of several statements hold: None where none is refuted, but some are undecided.

    With 95 % for each of the statements, that is the confidence of "all hold" too (an
    intersection-union test).
    """
    found = set(verdicts)
    if False in found:
        return False
    return None if None in found else True


def mean_and_spread(values: list[float], digits: int) -> str:
    """ "mean ± standard deviation", or the one value."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(values):.{digits}f}"


def confidence_interval(values: list[float], confidence: float) -> tuple[float, float]:
    """Where the mean of what the values are drawn from is, by Student's t; one value is both ends."""
    mean = statistics.fmean(values)
    if len(values) == 1:
        return mean, mean
    from scipy.stats import t

    error = statistics.stdev(values) / math.sqrt(len(values))
    reach = float(t.ppf((1 + confidence) / 2, len(values) - 1)) * error
    return mean - reach, mean + reach
