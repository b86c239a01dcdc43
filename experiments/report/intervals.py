"""Differences between the mean errors of two networks: intervals, alone and for several at once, and power.

Every interval of a difference is Welch's: Student's t for two groups of runs that may spread differently. Runs with the
same seed are not paired: pairs have half the degrees of freedom. Whether the seed makes the errors of two networks
alike is what seed_effect tests.

Where a table has m differences, one in twenty of the plain intervals misses by chance, so the simultaneous ones are
Bonferroni's: each has confidence 1 - 0.05 / m, and all of them hold at once in at least 95 % of cases, whatever the
dependence between them. They do depend on each other, because all share the base's runs. The p-values are Holm's, whose
bound on errors is the same and which lose less.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize, stats

LEVEL = 0.05  # the probability that an interval excludes zero by chance
POWER = 0.8  # the probability of seeing what is there
GRID = 64  # quantiles of each variance, see detectable
SEEDS = 3  # that a verdict needs at least: two may be equal by chance, and their interval then has no width


class Spread(NamedTuple):
    """The mean and standard deviation of a number over seeds."""

    mean: float
    std: float | None  # of the sample (n - 1); None for one seed


class Interval(NamedTuple):
    """A mean and its confidence interval."""

    n: int  # values, or, of a difference, those of the smaller group
    mean: float
    low: float | None  # None for one seed
    high: float | None

    @property
    def counts(self) -> bool:
        """Whether there are enough seeds for a verdict, of the base too."""
        return self.n >= SEEDS

    @property
    def ends(self) -> list[float]:
        """Both ends; none of too few seeds."""
        return [self.low, self.high] if self.counts and self.low is not None and self.high is not None else []

    @property
    def excludes_zero(self) -> bool:
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


class SeedEffect(NamedTuple):
    """An F test of whether networks trained with the same seed have errors that are alike."""

    f: float  # the mean square between seeds over that within them
    p: float
    groups: int  # networks
    seeds: int  # that all of them have


def judge(found: Interval, sign: float = 1) -> str:
    """A verdict on a difference that is said to be positive, or negative with a sign below zero."""
    if not found.counts:
        return "too few seeds"
    if not found.excludes_zero:
        return "not significant"
    return "agrees" if found.mean * sign > 0 else "contradicts"


def spread(values: Sequence[float]) -> Spread | None:
    """Mean and sample standard deviation; None without values, or if one is nan."""
    if not values or any(map(math.isnan, values)):
        return None
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def interval(values: Sequence[float]) -> Interval | None:
    """Mean and interval by Student's t with n - 1 degrees of freedom; None without values."""
    if not values:
        return None
    n, mean = len(values), statistics.fmean(values)
    if n == 1:
        return Interval(n, mean, None, None)
    half = _critical(n - 1) * statistics.stdev(values) / n**0.5
    return Interval(n, mean, mean - half, mean + half)


def difference(values: Sequence[float], base: Sequence[float], comparisons: int = 1) -> Interval | None:
    """How much higher the mean of `values` is than that of `base`, with Welch's interval; None if one is empty.

    comparisons: how many intervals are to hold at once, with 95 % confidence. The interval's n is that of the smaller
    group; it has no ends if that is one.
    """
    if not values or not base:
        return None
    n, mean = min(len(values), len(base)), _gap(values, base)
    if n == 1:
        return Interval(n, mean, None, None)
    error, freedom = _welch(values, base)
    half = _critical(freedom, comparisons) * error
    return Interval(n, mean, mean - half, mean + half)


def p_value(values: Sequence[float], base: Sequence[float]) -> float | None:
    """The two-sided p-value of equal means, by Welch's t; None if there are fewer than two values in a group."""
    if min(len(values), len(base)) < 2:
        return None
    error, freedom = _welch(values, base)
    mean = _gap(values, base)
    if not error:
        return float(mean == 0)
    return float(2 * stats.t.sf(abs(mean) / error, freedom))


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


def detectable(values: Sequence[float], base: Sequence[float], comparisons: int = 1) -> float | None:
    """The smallest true difference whose interval excludes zero with probability 0.8; None as p_value.

    Both groups are taken to spread as measured, which few seeds know only roughly. How wide the interval of other runs
    would be follows from the chi-squared distributions of their variances, of which a grid of quantiles is taken.
    """
    groups = values, base
    if min(map(len, groups)) < 2:
        return None
    error, _ = _welch(*groups)
    if not error:
        return 0.0
    quantiles = (np.arange(GRID) + 0.5) / GRID
    ours, theirs = np.meshgrid(
        *(statistics.variance(g) / len(g) * stats.chi2.ppf(quantiles, len(g) - 1) / (len(g) - 1) for g in groups)
    )
    half = stats.t.ppf(1 - LEVEL / comparisons / 2, _freedom(ours, theirs, *map(len, groups))) * np.sqrt(ours + theirs)

    def lacks(true: float) -> float:  # an interval on the wrong side of zero is one case in thousands, left out
        return float(stats.norm.cdf((true - half) / error).mean()) - POWER

    return optimize.brentq(lacks, 0, half.max() + 4 * error)


def seed_effect(groups: Sequence[Mapping[int, float]]) -> SeedEffect | None:
    """Two-way analysis of variance, networks and seeds without interaction, of errors by seed.

    Groups with fewer than three seeds are left out, and of the others the seeds that not all have. None if this leaves
    no two groups or no two seeds, or if nothing varies within the seeds.
    """
    groups = [group for group in groups if len(group) >= SEEDS]
    seeds = sorted(set.intersection(*map(set, groups))) if len(groups) > 1 else []
    if len(seeds) < 2:
        return None
    errors = np.array([[group[seed] for seed in seeds] for group in groups])
    residuals = errors - errors.mean(axis=1, keepdims=True) - errors.mean(axis=0) + errors.mean()
    freedom = len(seeds) - 1, (len(groups) - 1) * (len(seeds) - 1)
    within = (residuals**2).sum() / freedom[1]
    if within < 1e-12:  # rounding
        return None
    f = len(groups) * errors.mean(axis=0).var(ddof=1) / within
    return SeedEffect(float(f), float(stats.f.sf(f, *freedom)), len(groups), len(seeds))


def _gap(values: Sequence[float], base: Sequence[float]) -> float:
    """The difference of two means; zero if only rounding tells them apart.

    The means of three and of eight equal numbers may differ in the last digit, and their interval has no width.
    """
    ours, theirs = statistics.fmean(values), statistics.fmean(base)
    return 0.0 if math.isclose(ours, theirs, rel_tol=1e-12) else ours - theirs


def _welch(values: Sequence[float], base: Sequence[float]) -> tuple[float, float]:
    """(the standard error of the difference of two means, its degrees of freedom)."""
    ours, theirs = (statistics.variance(group) / len(group) for group in (values, base))
    if not ours + theirs:
        return 0.0, len(values) + len(base) - 2
    return (ours + theirs) ** 0.5, _freedom(ours, theirs, len(values), len(base))


def _freedom(ours, theirs, n: int, m: int):
    """Welch's degrees of freedom of n and m values whose means have these variances, numbers or arrays."""
    return (ours + theirs) ** 2 / (ours**2 / (n - 1) + theirs**2 / (m - 1))


def _critical(freedom: float, comparisons: int = 1) -> float:
    return float(stats.t.ppf(1 - LEVEL / comparisons / 2, freedom))
