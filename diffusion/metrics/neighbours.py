"""Exact nearest neighbours, block by block, by scikit-learn, or by oneDAL where scikit-learn-intelex is installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import numpy as np

INTEL = "scikit-learn-intelex"


def backend() -> str:
    """What searches, with its version, for a receipt."""
    try:
        return f"{INTEL} {version(INTEL)} (oneDAL)" if _accelerated() else f"scikit-learn {version('scikit-learn')}"
    except PackageNotFoundError:
        return INTEL


def nearest(
    queries: np.ndarray, points: np.ndarray, k: int = 1, themselves: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest points of each query, the nearest first: Euclidean distances (N, k) and places int64 (N, k).

    queries (N, E) and points (M, E), M >= k. With `themselves` the queries are the points, and none is its own
    neighbour: M > k. The search compares all pairs, in blocks; N x M distances are never in memory.
    """
    if _accelerated():
        from sklearnex.neighbors import NearestNeighbors
    else:
        from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(algorithm="brute").fit(points)
    if not themselves:
        distances, places = search.kneighbors(queries, k)
        return distances.astype(np.float64), places.astype(np.int64)
    distances, places = search.kneighbors(queries, k + 1)
    # Of equal points any may come first: what is dropped is the query itself where it was found, else the last.
    own = places == np.arange(len(queries))[:, None]
    own[~own.any(1), -1] = True
    return distances[~own].reshape(-1, k).astype(np.float64), places[~own].reshape(-1, k).astype(np.int64)


def _accelerated() -> bool:
    return find_spec("sklearnex") is not None
