"""Which of conv1's kernels are of colour, and what it says about towers."""

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import fisher_exact

from alexnet_jax.analysis.specialisation import (
    chance,
    color_blindness,
    color_share,
    colorfulness,
    gap_by_chance,
    towers_colors,
)

WEIGHTS = Path(os.environ.get("TFDS_DATA_DIR", "nowhere")).parent / "weights" / "alexnet_bvlc_conv1.npz"


def grey_and_colored(colored):
    """Kernels (5, 5, 3, n), grey or opponent colours."""
    color = np.where(np.array(colored)[:, None], (1, -1, 0), (1, 1, 1)).T
    return np.random.default_rng(0).normal(size=(5, 5, 1, len(colored))) * color


def test_colorfulness_of_grey_is_zero_and_of_opponent_colours_one():
    shape = np.random.default_rng(0).normal(size=(11, 11))
    grey, opponent, red = (shape[..., None] * np.array(c) for c in ((1, 1, 1), (1, -1, 0), (1, 0, 0)))
    kernel = np.stack([grey, opponent, red, np.zeros_like(red)], axis=-1).astype(np.float32)
    np.testing.assert_allclose(colorfulness(kernel), [0, 1, 2 / 3, 0], atol=1e-6)


def test_colorfulness_ignores_scale_and_stays_within_0_and_1():
    kernel = np.random.default_rng(1).normal(size=(11, 11, 3, 24))
    shares = colorfulness(kernel)
    assert shares.shape == (24,) and (shares > 0).all() and (shares < 1).all()
    np.testing.assert_allclose(colorfulness(-1e-3 * kernel), shares)


def test_towers_colors_counts_what_is_mostly_colour():
    """Tower 1 has a grey and a red kernel, tower 2 two opponent ones: shares 0, 2/3 and 1, 1."""
    shape = np.random.default_rng(0).normal(size=(11, 11))
    kernel = np.stack([shape[..., None] * np.array(c) for c in ((1, 1, 1), (1, 0, 0), (1, -1, 0), (0, 1, -1))], axis=-1)
    first, second = towers_colors(kernel, 2)
    assert first == (2, 1, pytest.approx(1 / 3)) and second == (2, 2, pytest.approx(1))
    assert towers_colors(kernel, 1) == [(4, 3, pytest.approx(2 / 3))]


def test_the_share_is_of_kernels_whatever_their_order_sign_and_scale():
    kernel = grey_and_colored([1, 1, 1, 0, 0, 0, 1, 0])
    assert color_share(kernel, 2) == [3 / 4, 1 / 4] and color_share(kernel, 1) == [1 / 2]
    assert color_share(kernel, 8) == [1, 1, 1, 0, 0, 0, 1, 0]
    scaled = kernel * np.array([-1, 1e-3, 5, 1, 2, -3, 0.1, 1])
    assert color_share(scaled[..., [2, 1, 0, 3, 7, 6, 5, 4]], 2) == [3 / 4, 1 / 4]


def test_a_grey_kernel_needs_as_much_colour_to_count_as_colour():
    """Grey of energy 3 and opponent colours of energy 2 c^2: above half from c^2 = 3 / 2."""
    grey, opponent = np.ones((1, 1, 3, 1)), np.array([1.0, -1.0, 0.0]).reshape(1, 1, 3, 1)
    assert color_share(grey + 1.49**0.5 * opponent, 1) == [0] and color_share(grey + 1.51**0.5 * opponent, 1) == [1]


def test_noise_is_mostly_colour():
    """Two of its three dimensions: what kernels are before they learn."""
    kernel = np.random.default_rng(0).normal(size=(11, 11, 3, 500))
    assert color_share(kernel, 2) == [1, 1]
    np.testing.assert_allclose(colorfulness(kernel).mean(), 2 / 3, atol=0.01)


@pytest.mark.parametrize(
    ("colored", "towers", "answer"),
    [
        ([0, 0, 0, 1, 1, 1, 1, 0], 2, "yes, tower 1"),
        ([1, 1, 1, 0, 0, 0, 0, 0], 2, "yes, tower 2"),
        ([0, 0, 1, 1, 1, 1, 1, 1], 2, "no"),  # half of it sees colour
        ([0, 0, 0, 0, 0, 0, 0, 0], 2, "no"),  # none does
        ([0, 0, 1, 1, 0, 0], 3, "yes, tower 1 and tower 3"),
    ],
)
def test_one_tower_is_color_blind(colored, towers, answer):
    lines = color_blindness(grey_and_colored(colored), towers).splitlines()
    assert len(lines) == towers + 1 + (towers == 2) and lines[-1].endswith(f"? {answer}")
    own = len(colored) // towers
    assert lines[0].startswith(f"tower 1: {sum(colored[:own])} of {own} kernels")


@pytest.mark.parametrize(("first", "second"), [(0, 0), (5, 5), (4, 5), (3, 0), (0, 4), (1, 5), (5, 0)])
def test_chance_is_fishers(first, second):
    expected = fisher_exact([[first, 5 - first], [second, 5 - second]]).pvalue
    assert chance(5, first, second) == chance(5, second, first) == pytest.approx(expected)


@pytest.mark.parametrize(("first", "second"), [(0, 0), (5, 5), (4, 5), (3, 0), (5, 0)])
def test_the_gap_by_chance_is_the_mean_over_all_ways_to_deal(first, second):
    colored = [1] * (first + second) + [0] * (10 - first - second)
    dealt = [sum(colored[i] for i in tower) for tower in itertools.combinations(range(10), 5)]
    expected = sum(abs(2 * one - sum(colored)) for one in dealt) / len(dealt)
    assert gap_by_chance(5, first, second) == pytest.approx(expected)


@pytest.mark.real_data
@pytest.mark.skipif(not WEIGHTS.is_file(), reason="no weights/alexnet_bvlc_conv1.npz beside TFDS_DATA_DIR")
def test_caffes_towers_have_39_and_5_colour_kernels_of_48():
    with np.load(WEIGHTS, allow_pickle=False) as held:
        kernel = held["conv1_w"][:, ::-1].transpose(2, 3, 1, 0)  # (96, 3, 11, 11), blue first
    assert color_share(kernel, 2) == [39 / 48, 5 / 48]
    assert "with probability 1.3e-12" in color_blindness(kernel, 2)
