"""How sure a figure is that was taken of several trainings on the same test images, and the difference of two of them.

Shapes: S trainings (seeds), N images. A figure is the mean of values (S, N), one for each training and image.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from diffusion.metrics.bootstrap import Interval


def crossed_interval(
    values: ArrayLike, confidence: float = 0.95, bounds: tuple[float, float] = (-math.inf, math.inf)
) -> Interval:
    """The mean of values (S, N), and the interval in which it is expected of other trainings and other test images.

    Trainings and images are crossed random effects, as readers and cases are in studies of diagnostic accuracy. With
    MS_S, MS_N and MS_E the mean squares of the two-way analysis of variance, the variance of the mean is

        (max(MS_S, MS_E) + max(MS_N, MS_E) - MS_E) / (S N),

    with the degrees of freedom of Satterthwaite (1946), and the interval is Student's. Sources: Brennan 2001
    (Generalizability Theory, chapter 6); Obuchowski and Rockette 1995. Resampling trainings and images (Owen 2007)
    would not do for the few trainings that can be afforded: three of them, resampled, cover 75 % instead of 95 % where
    trainings differ more than images do. A single training says nothing of others: then the images alone count.

    `bounds` are those of the figure itself; the ends are clipped to them. Without a spread both ends are the mean.
    Raises ValueError unless S, N >= 1.
    """
    mean, error, freedom = _mean_and_error(values)
    if error == 0:
        return Interval(mean, mean, mean)
    from scipy.stats import t

    reach = error * float(t.ppf((1 + confidence) / 2, freedom))
    return Interval(mean, max(mean - reach, bounds[0]), min(mean + reach, bounds[1]))


def paired_difference(
    a: ArrayLike, b: ArrayLike, confidence: float = 0.95, bounds: tuple[float, float] = (-math.inf, math.inf)
) -> tuple[Interval, float]:
    """The mean of a - b, both (S, N) of the same trainings' seeds and the same images, and the two-sided p value.

    The test is Student's, of no difference, under the variance of `crossed_interval`: p < 1 - confidence where the
    unclipped interval leaves 0 out. Without a spread p is 1 for no difference, and 0 for any.
    """
    difference = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    mean, error, freedom = _mean_and_error(difference)
    if error == 0:
        p = float(mean == 0)
    else:
        from scipy.stats import t

        p = float(2 * t.sf(abs(mean) / error, freedom))
    return crossed_interval(difference, confidence, bounds), p


def _mean_and_error(values: ArrayLike) -> tuple[float, float, float]:
    """The mean, its standard error, and the degrees of freedom of that."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"values of shape {values.shape}: (S, N) is needed, both at least 1")
    trainings, images = values.shape
    mean = float(values.mean())
    rows, columns = values.mean(1) - mean, values.mean(0) - mean
    rest = values - mean - rows[:, None] - columns
    of_trainings, of_images = images * float(rows @ rows), trainings * float(columns @ columns)
    if min(trainings, images) == 1:  # one effect only, which the error is part of
        freedom = values.size - 1
        variance = (of_trainings + of_images) / freedom if freedom else 0.0
    else:
        free = np.array([trainings - 1, images - 1, (trainings - 1) * (images - 1)])
        squares = np.array([of_trainings, of_images, float((rest**2).sum())]) / free
        squares = np.maximum(squares, squares[2])
        variance = float(squares[0] + squares[1] - squares[2])
        freedom = variance**2 / max(float((squares**2 / free).sum()), np.finfo(float).tiny)
    error = math.sqrt(variance / values.size)
    # Rounding leaves a spread of this size where there is none.
    return (mean, error, freedom) if error > 1e-12 * max(1.0, abs(mean)) else (mean, 0.0, math.inf)
