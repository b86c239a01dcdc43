"""A search that is right because it is simple."""

import numpy as np


def brute_force(queries, gallery, k, own=None):
    """Pair by pair in float64; of equal distances the lower index first."""
    distances, indices = [], []
    for i, query in enumerate(queries.astype(np.float64)):
        all_of_them = np.array([np.square(query - row).sum() for row in gallery.astype(np.float64)])
        if own is not None:
            all_of_them[own[i]] = np.inf
        order = np.argsort(all_of_them, kind="stable")[:k]
        indices.append(order)
        distances.append(np.sqrt(all_of_them[order]))
    return np.array(distances), np.array(indices)
