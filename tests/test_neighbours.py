"""Nearest neighbours against a float64 loop over all pairs."""

import numpy as np
import pytest
from helpers.search import brute_force
from tqdm import tqdm

from alexnet_jax import UserError
from alexnet_jax.analysis import neighbours
from alexnet_jax.analysis.neighbours import nearest


def check(queries, gallery, k, own=None, **kwargs):
    distances, indices = nearest(queries, gallery, k, own=own, **kwargs)
    expected = brute_force(queries, gallery, k, own)
    np.testing.assert_array_equal(indices, expected[1])
    np.testing.assert_allclose(distances, expected[0], rtol=1e-6)
    assert distances.dtype == np.float32 and indices.dtype == np.int32


def vectors(n, d=20, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


@pytest.mark.parametrize("block", [None, 1, 7, 16, 50, 64])
def test_equals_brute_force_in_any_blocks(block):
    check(vectors(23), vectors(50, seed=1), 6, block=block)


def test_equals_brute_force_where_the_device_holds_a_few_queries_at_a_time(monkeypatch):
    monkeypatch.setattr(neighbours, "QUERIES", 20 * 5)
    rows = vectors(23)
    with tqdm(total=1) as progress:
        check(rows, rows, 6, own=np.arange(23), block=3, progress=progress)
        assert progress.n == progress.total == 5 * 23


def test_equals_brute_force_on_pixels():
    rng = np.random.default_rng(0)
    check(*(rng.integers(0, 256, (n, 300), np.uint8) for n in (9, 40)), 6, block=13)


@pytest.mark.parametrize("block", [None, 7])
def test_leaves_a_query_itself_out(block):
    """Its copy elsewhere in the gallery it does find, at no distance."""
    rows = vectors(40)
    rows[31] = rows[3]
    check(rows, rows, 6, own=np.arange(40), block=block)
    assert nearest(rows, rows, 1, own=np.arange(40))[1][3] == 31
    order = np.random.default_rng(1).permutation(40)[:10]
    check(rows[order], rows, 39, own=order, block=block)  # all the others


@pytest.mark.parametrize("offset", [0, 300, 30_000])
def test_near_duplicates_far_from_the_origin(offset):
    """Distances of 1e-3 and less between vectors of length 1e5: squared in float32 nothing of them would be left."""
    rng = np.random.default_rng(0)
    base = rng.normal(size=(1, 64)) + offset
    gallery = (base + rng.normal(size=(60, 64)) * 10.0 ** rng.integers(-3, 2, (60, 1))).astype(np.float32)
    queries = (gallery[::6] + rng.normal(size=(10, 64)) * 1e-3).astype(np.float32)
    check(queries, gallery, 6, block=25)


def test_near_duplicates_far_from_each_other():
    """Two heaps at 1e4 on either side: no centre is near both, so what the device says is not enough."""
    rng = np.random.default_rng(0)
    heaps = rng.normal(size=(2, 1, 64)) * 1e4
    gallery = (heaps + rng.normal(size=(2, 100, 64)) * 1e-2).astype(np.float32).reshape(200, 64)
    queries = (heaps + rng.normal(size=(2, 5, 64)) * 1e-2).astype(np.float32).reshape(10, 64)
    check(queries, gallery, 6, block=64)


def test_asks_again_where_rounding_could_have_hidden_a_neighbour(monkeypatch):
    """For more candidates, only for those queries, and from their own mean, where it is certain."""
    asked = []
    candidates = neighbours._candidates

    def spy(queries, *rest):
        asked.append((len(queries), rest[3]))
        return candidates(queries, *rest)

    monkeypatch.setattr(neighbours, "_candidates", spy)
    spread = vectors(200, seed=1)
    check(vectors(10), spread, 2)
    assert asked == [(10, 12)]  # certain at once
    asked.clear()
    heap = 30 + 1e-4 * vectors(100)  # from the mean of all queries each looks as near as another
    check(np.concatenate([heap[:3], spread[:3] * 0.9]), np.concatenate([spread, heap]), 2)
    assert asked == [(6, 12), (3, 48)]


def test_ties_go_to_the_lower_index():
    rows = np.zeros((100, 4), np.float32)
    rows[:10] = 1
    _, indices = nearest(rows[50:52], rows, 5, block=7)
    assert indices.tolist() == [list(range(10, 15))] * 2
    _, indices = nearest(rows[:1], rows, 12, own=[0], block=7)
    assert indices.tolist() == [[*range(1, 10), 10, 11, 12]]


def test_whole_numbers_tie_as_in_float64():
    rows = np.random.default_rng(0).integers(0, 3, (150, 5)).astype(np.float32)  # many at equal distances
    check(rows[:40], rows, 6, block=32)
    check(rows, rows, 6, own=np.arange(150))


def test_too_few_in_the_gallery_are_named():
    rows = vectors(6)
    assert nearest(rows, rows, 6)[1].shape == (6, 6)
    with pytest.raises(UserError, match="6 neighbours are asked for and the gallery has 5"):
        nearest(rows, rows, 6, own=np.arange(6))
    with pytest.raises(UserError, match="0 neighbours"):
        nearest(rows, rows, 0)


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_vectors_that_cannot_be_compared_are_refused(bad):
    rows = vectors(40)
    rows[:, 3] = bad
    rows[::2, 3] *= -1
    for queries, gallery in ((rows, rows), (rows, vectors(40)), (vectors(40), rows)):
        with pytest.raises(ValueError, match="NaN or infinity"):
            nearest(queries, gallery, 6)


def test_precision_of_a_hand_made_example():
    """Gallery classes a a b b c; two queries of a and one of c."""
    gallery = np.array([0, 0, 1, 1, 2])
    indices = np.array([[0, 1, 2], [2, 3, 4], [4, 2, 0]])
    np.testing.assert_allclose(neighbours.precision(indices, np.array([0, 0, 2]), gallery), [2 / 3, 0, 1 / 3])
