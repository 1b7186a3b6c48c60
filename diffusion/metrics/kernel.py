"""How far apart two sets of images are, by a kernel on their features."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from diffusion.errors import UserError
from diffusion.metrics.bootstrap import Estimate

MOST_VALUES = 1 << 20
"""Kernel values that are computed at once: they stay in a processor's cache."""


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
    within_a, within_b = (_sums(x, x)[0] - ((x * x).mean(1) + 1) ** 3 for x in (a, b))
    a_to_b, b_to_a = _sums(a, b)
    a_to_b, b_to_a = a_to_b / len(b), b_to_a / len(a)
    within_a, within_b = within_a / (len(a) - 1), within_b / (len(b) - 1)
    value = float(within_a.mean() + within_b.mean() - 2 * a_to_b.mean())
    return Estimate(value, (_centred(within_a - a_to_b), _centred(within_b - b_to_a)))


def _sums(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """sum_j k(x_i, y_j), (N,), and sum_i k(x_i, y_j), (M,)."""
    rows, columns, one = [], torch.zeros(len(y), dtype=x.dtype, device=x.device), x.new_ones(())
    for block in x.split(max(1, MOST_VALUES // len(y))):
        base = torch.addmm(one, block, y.T, alpha=1 / x.shape[1])
        cube = base.square().mul_(base)
        rows.append(cube.sum(1))
        columns += cube.sum(0)
    return torch.cat(rows), columns


def _centred(values: Tensor) -> np.ndarray:
    return (2 * (values - values.mean())).cpu().numpy()
