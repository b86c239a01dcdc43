"""Exact nearest neighbours by Euclidean distance, on any vectors.

distances, indices = nearest(queries, gallery, k=6)
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from tqdm import tqdm

from alexnet_jax import UserError
from alexnet_jax.data.host import in_threads

K = 6  # figure 4 shows six
SPARE = 10  # candidates beyond k that the device returns
QUERIES = 2**28  # numbers of queries that are on the device at once
NOT_FINITE = "the vectors contain NaN or infinity, or numbers whose squares are too large for float32"


def nearest(
    queries: np.ndarray,
    gallery: np.ndarray,
    k: int = K,
    *,
    own: np.ndarray | None = None,
    block: int | None = None,
    progress: tqdm | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest rows of the gallery for each query by Euclidean distance, exactly.

    Args:
      queries, gallery: (q, d) and (n, d), float32 or uint8, finite. They stay in the host's memory; of
        the queries 2**28 numbers are on the device at a time.
      own: int32 (q,), the query's own row in the gallery, which is left out of its neighbours; -1: it has none.
      block: rows of either that are multiplied at a time; default: as many as have 2**26 numbers, 4096 at most.
      progress: a bar to advance by n, once for each 2**28 numbers of the queries.
    Returns: distances float32 (q, k), ascending, and indices int32 (q, k). Of equal distances the lower index is first.
    Raises UserError if the gallery has fewer than k other rows; ValueError if a number is not finite, or near 1e19.

    The device compares blocks by |a|^2 + |b|^2 - 2ab, which is a matrix product. The difference of two large numbers
    loses digits, so:
    (1) The queries' mean is subtracted from all vectors. Distances stay the same, and a and b become short.
    (2) Products are in full float32, not in an accelerator's faster and shorter default.
    (3) The device only names k + SPARE candidates. They are ranked by their true distance, in float64.
    (4) The neighbours that rounding can have hidden are bounded. Rounding changes the formula by at most
    e (|a| + |b|)^2. So a row that was left out at value v has |a - b|^2 of at least (v - 8e |a|^2) / (1 + 2e), because
    |b| <= |a| + |a - b|. A query whose k-th neighbour is not nearer than that is searched again, from the mean of such
    queries, with four times the candidates.
    """
    n, d = gallery.shape
    own = np.full(len(queries), -1, np.int32) if own is None else np.asarray(own, np.int32)
    others = n - 1 if (own >= 0).any() else n
    if not 1 <= k <= others:
        raise UserError(f"{k} neighbours are asked for and the gallery has {others} images beside the query's own")
    block = block or max(1, min(4096, 2**26 // d))
    slab = max(block, QUERIES // d)
    starts = range(0, len(queries), slab)
    if progress is not None:
        progress.total = n * len(starts)
    parts = [_nearest(queries[s : s + slab], gallery, k, own[s : s + slab], block, progress) for s in starts]
    distances, indices = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return distances, indices


def _nearest(
    queries: np.ndarray, gallery: np.ndarray, k: int, own: np.ndarray, block: int, progress: tqdm | None
) -> tuple[np.ndarray, np.ndarray]:
    """`nearest` of so few queries that the device can hold all of them."""
    n, d = gallery.shape
    distances, indices = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int32)
    # e of a sum of d terms: 8 standard deviations, if roundings are independent (Higham and Mary, 2019).
    error = 8 * d**0.5 * 2**-24
    left, count = np.arange(len(queries)), min(n, k + SPARE)
    while len(left):
        asked = queries if len(left) == len(queries) else queries[left]
        centre = asked.mean(axis=0, dtype=np.float64).astype(np.float32)
        values, candidates = _candidates(asked, gallery, centre, own[left], count, block, progress)
        squares, lengths = _true_squares(asked, gallery, centre, candidates)
        squares[(candidates < 0) | (candidates == own[left, None])] = np.inf
        order = np.lexsort((candidates, squares))[:, :k]
        squares = np.take_along_axis(squares, order, axis=1)
        if not np.isfinite(squares).all():
            raise ValueError(NOT_FINITE)
        distances[left] = np.sqrt(squares)
        indices[left] = np.take_along_axis(candidates, order, axis=1)
        if count == n:
            break
        farthest = values[:, -1]
        certain = np.isfinite(farthest) & (squares[:, -1] * (1 + 2 * error) <= farthest - 8 * error * lengths)
        left, count = left[~certain], min(n, 4 * count)
        progress = None  # it has counted the whole gallery
    return distances, indices


def _candidates(
    queries: np.ndarray,
    gallery: np.ndarray,
    centre: np.ndarray,
    own: np.ndarray,
    count: int,
    block: int,
    progress: tqdm | None,
) -> tuple[np.ndarray, np.ndarray]:
    """The `count` nearest by the device's formula.

    Returns: their values float32 (q, count), ascending, inf if there is none, and their indices int32 (q, count).
    """
    starts = range(0, len(queries), block)
    parts = [jax.device_put((queries[s : s + block], own[s : s + block])) for s in starts]
    best = [(jnp.full((len(o), count), jnp.inf), jnp.full((len(o), count), -1, jnp.int32)) for _, o in parts]
    for start in range(0, len(gallery), block):
        rows = _centred(gallery[start : start + block], centre)
        for i, (part, numbers) in enumerate(parts):
            best[i] = _merge(best[i], _centred(part, centre), rows, numbers, start, count)
        jax.block_until_ready(best)  # otherwise all blocks of the gallery would queue up on the device
        if not np.isfinite(rows[1]).all():
            raise ValueError(NOT_FINITE)
        if progress is not None:
            progress.update(len(rows[1]))
    values, indices = (np.concatenate(arrays) for arrays in zip(*jax.device_get(best), strict=True))
    return values, indices


@jax.jit  # not inside _merge: XLA:CPU is many times slower if it fuses the sum with the product
def _centred(rows, centre):
    rows = rows.astype(jnp.float32) - centre
    return rows, jnp.sum(rows * rows, axis=1)


@partial(jax.jit, static_argnames="count")
def _merge(best, queries, rows, own, start, count):
    """The `count` nearest of the best so far and of a block. Of equal ones the best so far, with lower indices, win."""
    (a, a_squared), (b, b_squared) = queries, rows
    squares = a_squared[:, None] + b_squared - 2 * jnp.matmul(a, b.T, precision=lax.Precision.HIGHEST)
    index = start + jnp.arange(len(b), dtype=jnp.int32)
    squares = jnp.where(index == own[:, None], jnp.inf, squares)
    values = jnp.concatenate([best[0], squares], axis=1)
    indices = jnp.concatenate([best[1], jnp.broadcast_to(index, squares.shape)], axis=1)
    values, at = lax.top_k(-values, count)
    return -values, jnp.take_along_axis(indices, at, axis=1)


def _true_squares(
    queries: np.ndarray, gallery: np.ndarray, centre: np.ndarray, candidates: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """|a - b|^2 of the candidates, float64 (q, count), and |a|^2 of the queries from the centre, float64 (q,)."""

    def part(at):
        a = queries[at].astype(np.float64)
        difference = gallery[candidates[at]] - a[:, None]
        return np.square(difference, out=difference).sum(axis=2), np.square(a - centre).sum(axis=1)

    rows = max(1, 2**22 // (candidates.shape[1] * queries.shape[1]))  # 32 MB in each thread
    parts = in_threads(part, [slice(start, start + rows) for start in range(0, len(queries), rows)])
    squares, lengths = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return squares, lengths


def precision(indices: np.ndarray, labels: np.ndarray, gallery_labels: np.ndarray) -> np.ndarray:
    """The share of each query's neighbours, `indices` (q, k), that are of its class: float64 (q,)."""
    return (gallery_labels[indices] == labels[:, None]).mean(axis=1)
