"""How far apart two sets of images are, by a kernel on their features."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from diffusion.errors import UserError
from diffusion.metrics.bootstrap import Estimate

MOST_VALUES = 1 << 22
"""Kernel values that are in memory at once."""


def kernel_estimate(features_a: Tensor, features_b: Tensor) -> Estimate:
    """The squared maximum mean discrepancy under k(x, y) = (x'y / E + 1)^3 of features (N, E) and (M, E), in float64.

    mean_{i != j} k(a_i, a_j) + mean_{i != j} k(b_i, b_j) - 2 mean_{i, j} k(a_i, b_j), the KID of Bińkowski et al. 2018
    over all pairs, where others average over random subsets. Its mean over independent draws is the distance of the
    distributions, whatever N; so for equal ones it is often below 0. The influence of a_i is twice the mean of
    k(a_i, .) over the rest of a, less that over b (its Hájek projection). All pairs are visited in blocks.
    Raises UserError for fewer than two samples.
    """
    for features in (features_a, features_b):
        if len(features) < 2:
            raise UserError(f"a kernel distance of {len(features)} images: it needs at least 2 on either side")
    a, b = features_a.double(), features_b.double()
    within_a, within_b = _row_sums(a, a) - _kernel(a, a), _row_sums(b, b) - _kernel(b, b)
    a_to_b, b_to_a = _row_sums(a, b) / len(b), _row_sums(b, a) / len(a)
    within_a, within_b = within_a / (len(a) - 1), within_b / (len(b) - 1)
    value = float(within_a.mean() + within_b.mean() - 2 * a_to_b.mean())
    return Estimate(value, (_centred(within_a - a_to_b), _centred(within_b - b_to_a)))


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    """k of each pair of rows (N, E)."""
    return ((x * y).mean(1) + 1) ** 3


def _row_sums(x: Tensor, y: Tensor) -> Tensor:
    """sum_j k(x_i, y_j), (N,)."""
    size = x.shape[1]
    blocks = x.split(max(1, MOST_VALUES // len(y)))
    return torch.cat([(torch.addmm(block.new_ones(()), block, y.T, alpha=1 / size) ** 3).sum(1) for block in blocks])


def _centred(values: Tensor) -> np.ndarray:
    return (2 * (values - values.mean())).cpu().numpy()
