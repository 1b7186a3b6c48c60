"""How sure a mean over images is."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

MOST_VALUES = 1 << 22
"""Resampled values that are in memory at once."""


class Interval(NamedTuple):
    """A mean, and the ends of its confidence interval."""

    mean: float
    low: float
    high: float


def interval(values: ArrayLike, confidence: float = 0.95, resamples: int = 1000, seed: int = 0) -> Interval:
    """The mean of values (N,), N >= 1, and the percentile bootstrap of it (Efron 1979), in float64.

    The ends are the (1 - confidence) / 2 and (1 + confidence) / 2 quantiles of the means of `resamples` draws of N
    values with replacement; they depend on values and seed alone. A single value, values that are all the same, and
    values of which one is infinite or NaN tell nothing of their spread: both ends are then the mean itself.
    """
    from scipy.stats import bootstrap

    values = np.asarray(values, dtype=np.float64)
    if values.min() == values.max():
        return Interval(*[float(values[0])] * 3)
    mean = float(values.mean())
    if not np.isfinite(mean):
        return Interval(mean, mean, mean)
    found = bootstrap(
        (values,),
        np.mean,
        n_resamples=resamples,
        batch=max(1, MOST_VALUES // len(values)),
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(mean, float(found.low), float(found.high))
