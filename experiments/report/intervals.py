"""Differences between runs with the same seeds: intervals, alone and for several comparisons at once, and power.

Every interval is Student's t over the paired differences. Where a table has m of them, one in twenty of the plain ones
misses by chance, so the simultaneous ones are Bonferroni's: each has confidence 1 - 0.05 / m, and all of them hold at
once in at least 95 % of cases, whatever the dependence between them. They do depend on each other, because all share
the base's runs. The p-values are Holm's, whose bound on errors is the same and which lose less.
"""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from scipy import optimize, stats

LEVEL = 0.05  # the probability that an interval excludes zero by chance
POWER = 0.8  # the probability of seeing what is there
SEEDS = 3  # that a verdict needs at least: two may be equal by chance, and their interval then has no width


class Spread(NamedTuple):
    """The mean and standard deviation of a number over seeds."""

    mean: float
    std: float | None  # of the sample (n - 1); None for one seed


class Interval(NamedTuple):
    """A mean and its confidence interval."""

    n: int
    mean: float
    low: float | None  # None for one seed
    high: float | None

    @property
    def counts(self) -> bool:
        """Whether there are enough seeds for a verdict."""
        return self.n >= SEEDS

    @property
    def excludes_zero(self) -> bool:
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


def spread(values: Sequence[float]) -> Spread | None:
    """Mean and sample standard deviation; None without values, or if one is nan."""
    if not values or any(map(math.isnan, values)):
        return None
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def interval(values: Sequence[float], comparisons: int = 1) -> Interval | None:
    """Mean and interval by Student's t with n - 1 degrees of freedom; None without values.

    comparisons: how many intervals are to hold at once, with 95 % confidence.
    """
    if not values:
        return None
    n, mean = len(values), statistics.fmean(values)
    if n == 1:
        return Interval(n, mean, None, None)
    half = _critical(n, comparisons) * statistics.stdev(values) / n**0.5
    return Interval(n, mean, mean - half, mean + half)


def p_value(values: Sequence[float]) -> float | None:
    """The two-sided p-value of a mean of zero, by Student's t; None for fewer than two values."""
    if len(values) < 2:
        return None
    error = statistics.stdev(values) / len(values) ** 0.5
    mean = statistics.fmean(values)
    if not error:
        return float(mean == 0)
    return float(2 * stats.t.sf(abs(mean) / error, len(values) - 1))


def holm(p_values: Sequence[float], comparisons: int = 0) -> list[float]:
    """Holm's adjusted p-values, in the order given: below 0.05, a difference counts among all of them.

    comparisons: how many there are to be, if more than those given.
    """
    count = max(comparisons, len(p_values))
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (count - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def detectable(values: Sequence[float], comparisons: int = 1) -> float | None:
    """The smallest true difference whose interval excludes zero with probability 0.8; None for fewer than two values.

    The standard deviation of the differences is taken to be the measured one, which few seeds know only roughly. The
    test statistic then has a noncentral t distribution.
    """
    n = len(values)
    if n < 2:
        return None
    critical = _critical(n, comparisons)

    def lacks(shift: float) -> float:  # an interval on the wrong side of zero is one case in thousands, left out
        return float(stats.nct.sf(critical, n - 1, shift)) - POWER

    return optimize.brentq(lacks, 0, 4 * critical) * statistics.stdev(values) / n**0.5


def _critical(n: int, comparisons: int) -> float:
    return float(stats.t.ppf(1 - LEVEL / comparisons / 2, n - 1))
