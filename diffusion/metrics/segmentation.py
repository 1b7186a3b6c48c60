"""How near the masks that are found are to the true ones, and whether it is known where they are wrong.

Masks are int64 or uint8 (N, *S) of class indices, S of two or three axes; every figure is of one case and one class.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

BINS = 15
"""Of the calibration: equal intervals of the probability."""


def confusion(found: Tensor, truth: Tensor, classes: int) -> Tensor:
    """How many pixels of each case are of class t and found as class f: int64 (N, classes, classes), [n, t, f]."""
    cases = torch.arange(len(truth), device=truth.device).reshape(-1, *[1] * (truth.ndim - 1))
    places = (cases * classes + truth.long()) * classes + found.long()
    counts = torch.bincount(places.flatten(), minlength=len(truth) * classes**2)
    return counts.reshape(len(truth), classes, classes)


def dice_of(counts: Tensor) -> Tensor:
    """Dice coefficient 2 |A and B| / (|A| + |B|) of counts (N, K, K), float64 (N, K); 1 where both sets are empty."""
    both, sizes = _overlap(counts)
    return torch.where(sizes > 0, 2 * both / sizes.clamp(min=1), 1.0)


def iou_of(counts: Tensor) -> Tensor:
    """Intersection over union |A and B| / |A or B|, float64 (N, K); 1 where both sets are empty."""
    both, sizes = _overlap(counts)
    return torch.where(sizes > 0, both / (sizes - both).clamp(min=1), 1.0)


def _overlap(counts: Tensor) -> tuple[Tensor, Tensor]:
    return counts.diagonal(dim1=1, dim2=2).double(), (counts.sum(1) + counts.sum(2)).double()


def hausdorff95(found: np.ndarray, truth: np.ndarray) -> float:
    """The 95% Hausdorff distance of two sets of pixels, bool (*S), in pixels.

    The surface of a set are its pixels with a neighbour across a face that is not in it, or at the border. Of the
    distances from each surface pixel of one set to the nearest surface pixel of the other the 95th percentile; the
    larger of the two directions. 0 where both sets are empty, NaN where one is.
    Source: Huttenlocher et al. 1993, with a percentile in place of the maximum.
    """
    from scipy.ndimage import distance_transform_edt

    if not found.any() and not truth.any():
        return 0.0
    if not found.any() or not truth.any():
        return float("nan")
    # Beyond the box around both sets nothing matters.
    box = tuple(slice(max(0, places.min()), places.max() + 1) for places in np.nonzero(found | truth))
    a, b = (_surface(np.ascontiguousarray(each[box])) for each in (found, truth))
    to_a, to_b = (distance_transform_edt(~each) for each in (a, b))
    return float(max(np.percentile(to_b[a], 95), np.percentile(to_a[b], 95)))


def _surface(pixels: np.ndarray) -> np.ndarray:
    from scipy.ndimage import binary_erosion

    # What lies beyond the border counts as outside of the set.
    return pixels & ~binary_erosion(pixels)


def entropy_of(probabilities: Tensor) -> Tensor:
    """The predictive entropy of probabilities (N, K, *S) over its largest value, log K: (N, *S), from 0 to 1."""
    p = probabilities.float()
    return torch.special.entr(p).sum(1).clamp(min=0) / np.log(p.shape[1])


class Calibration(NamedTuple):
    """Of all pixels in each of the bins of a probability: how many, its mean, and the share in which it came true.

    Each is float64 (bins,); mean and share are NaN in an empty bin.
    """

    count: np.ndarray
    mean: np.ndarray
    share: np.ndarray

    @property
    def error(self) -> float:
        """The expected calibration error: |mean - share|, weighed by the counts (Naeini et al. 2015)."""
        some = self.count > 0
        return float(np.average(np.abs(self.mean - self.share)[some], weights=self.count[some]))


def calibration_of(probability: Tensor, came_true: Tensor, bins: int = BINS) -> Calibration:
    """Of probabilities in [0, 1] and what came true, bool, of the same shape; bins of equal width."""
    p, y = probability.flatten().double(), came_true.flatten().double()
    place = (p * bins).long().clamp(0, bins - 1)
    count, mean, share = (torch.bincount(place, weights, minlength=bins).numpy() for weights in (None, p, y))
    with np.errstate(invalid="ignore"):
        return Calibration(count.astype(np.float64), mean / count, share / count)
