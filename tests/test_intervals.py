"""The statistics of the report: equal to SciPy's, and by simulation they keep what they promise."""

import numpy as np
import pytest
from scipy import stats

from experiments.report.intervals import detectable, difference, holm, interval, p_value, seed_effect


def test_intervals_equal_scipys():
    ours, theirs = [3.1, 2.0, 4.7, -1.0, 0.3], [1.0, 2.5, 0.5]
    reference = stats.ttest_ind(ours, theirs, equal_var=False)
    found = difference(ours, theirs)
    assert found[2:] == pytest.approx(tuple(reference.confidence_interval(0.95))) and found.n == 3
    assert p_value(ours, theirs) == pytest.approx(reference.pvalue)
    wider = reference.confidence_interval(1 - 0.05 / 4)
    assert difference(ours, theirs, 4)[2:] == pytest.approx(tuple(wider))
    assert difference(ours, [1.5]) == (1, pytest.approx(1.82 - 1.5), None, None)
    assert difference(ours, []) is None and difference([], theirs) is None
    assert interval(ours)[2:] == pytest.approx(tuple(stats.ttest_1samp(ours, 0).confidence_interval(0.95)))
    assert interval([2.5]) == (1, 2.5, None, None) and interval([]) is None


def test_intervals_of_several_hold_at_once():
    """By simulation: of 400 tables of six differences that are all zero, with one base, about one in twenty errs."""
    generator = np.random.default_rng(0)
    errs = {1: 0, 6: 0}
    for _ in range(400):
        base = list(generator.normal(0, 1, 5))
        rows = [list(generator.normal(0, spread, 5)) for spread in (0.5, 1, 1, 1, 2, 2)]
        for comparisons in errs:
            errs[comparisons] += any(difference(row, base, comparisons).excludes_zero for row in rows)
    assert errs[6] <= 30 < errs[1]  # 20 expected at most; 1 - 0.95^6 of 400 would be 106 if they were independent


def test_equal_errors_are_equal_however_many_there_are():
    """Means of 3, 4, ..., 11 equal numbers differ in the last digit, and their intervals have no width."""
    for value in 100 * np.arange(3926) / 3925:
        for n, m in ((3, 11), (7, 5), (11, 8)):
            ours, theirs = [float(value)] * n, [float(value)] * m
            assert not difference(ours, theirs).excludes_zero and p_value(ours, theirs) == 1


def test_p_values_equal_holms():
    """Holm's example by hand: the smallest times 4, the next times 3, and none below the one before it."""
    assert (p_value([1.0], [2.0, 3.0]), p_value([2.0, 2.0], [1.0, 1.0]), p_value([1.0, 1.0], [1.0, 1.0])) == (
        None,
        0,
        1,
    )
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.01, 0.04], 4) == pytest.approx([0.04, 0.12])
    assert holm([0.9, 0.8]) == [1, 1] and holm([]) == []


@pytest.mark.parametrize(("n", "comparisons"), [(3, 1), (8, 12)])
def test_what_so_many_seeds_would_have_seen(n, comparisons):
    """By simulation: a true difference of this size is found in four of five cases."""
    spread_out = [float(x) for x in np.linspace(-1, 1, n)]  # their standard deviation is that of the simulated ones
    size = detectable(spread_out, spread_out, comparisons)
    generator = np.random.default_rng(1)
    cases = generator.normal(0, np.std(spread_out, ddof=1), (1000, 2, n))
    seen = np.mean([difference(list(a + size), list(b), comparisons).excludes_zero for a, b in cases])
    assert seen == pytest.approx(0.8, abs=0.04)
    assert detectable([1.0], [1.0, 2.0]) is None and detectable([2.0, 2.0], [1.0, 1.0]) == 0


def test_a_seeds_effect():
    """Of two networks F is the variance of the sums over that of the differences; without an effect p is uniform."""
    ours, theirs = {0: 3.0, 1: 1.0, 2: 4.0, 5: 1.5}, {2: 3.5, 5: 2.0, 0: 2.0, 1: 2.5, 9: 99.0}
    pairs = np.array([[ours[seed], theirs[seed]] for seed in ours])
    f = pairs.sum(axis=1).var() / (pairs[:, 0] - pairs[:, 1]).var()
    assert seed_effect([ours, theirs, {0: 7.0, 1: 5.0}]) == pytest.approx((f, stats.f.sf(f, 3, 3), 2, 4))
    assert seed_effect([ours]) is seed_effect([ours, {7: 1.0, 8: 2.0, 9: 1.0}]) is None
    assert seed_effect([ours, {seed: error + 1 for seed, error in ours.items()}]) is None
    generator = np.random.default_rng(2)
    chance, alike = 0, 0
    for _ in range(400):
        errors = generator.normal(0, 1, (6, 4)) + generator.normal(0, 9, (6, 1))
        chance += seed_effect([dict(enumerate(row)) for row in errors]).p < 0.05
        alike += seed_effect([dict(enumerate(row)) for row in errors + generator.normal(0, 2, 4)]).p < 0.05
    assert 10 <= chance <= 30 and alike > 300
