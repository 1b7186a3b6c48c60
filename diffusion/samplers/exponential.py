"""Exponential integrators: one step's D, from those that are known at several times."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def blend(means: Sequence[Tensor], levels: Sequence[float], start: float, end: float) -> Tensor:
    """The D with which `transfer` from half log-SNR `start` to `end` integrates the polynomial through the means.

    x_s = (sigma_s / sigma_t) x_t + alpha_s int_0^h e^(tau - h) D(tau) dtau, where h = end - start and tau runs from
    `start` (Lu et al. 2022, DPM-Solver++, eq. 9). means[j] is D at levels[j]; the first one is D at `start`, and the
    answer where h is infinite: in a step from alpha = 0 or to sigma = 0. Levels that are not finite are left out.
    """
    h = end - start
    known = [(mean, level) for mean, level in zip(means, levels, strict=True) if math.isfinite(level)]
    if not math.isfinite(h) or len(known) == 1:
        return means[0]
    shares = weights([(level - start) / h for _, level in known], h)
    return sum(share * mean for share, (mean, _) in zip(shares, known, strict=True))


def weights(places: Sequence[float], h: float) -> list[float]:
    """The share of each D, where the D lie at `places` of the step, 0 its start and 1 its end; they sum to 1.

    w_j is the mean of the Lagrange polynomial l_j(u) over the step under the density e^(h (u - 1)). Of two places it is
    l_j at the middle, which is as accurate and what DPM-Solver++ 2M and UniPC's B2 take.
    """
    if len(places) == 2:
        (a, b), middle = places, 0.5
        return [(middle - b) / (a - b), (middle - a) / (b - a)]
    powers = torch.tensor(places, dtype=torch.float64) ** torch.arange(len(places))[:, None]
    integrals = torch.tensor(moments(h, len(places)), dtype=torch.float64)
    return torch.linalg.solve(powers, integrals / integrals[0]).tolist()


def moments(h: float, count: int) -> list[float]:
    """int_0^1 u^k e^(h (u - 1)) du for k = 0 ... count - 1 and h > 0, by the recursion h q_k + k q_(k-1) = 1.

    Upwards it loses digits where h is small, downwards where h is large.
    """
    if h > count:
        found = [-math.expm1(-h) / h]
        for k in range(1, count):
            found.append((1 - k * found[-1]) / h)
        return found
    found = [0.0]
    for k in range(count + 30, 0, -1):
        found.append((1 - h * found[-1]) / k)
    return found[: -count - 1 : -1]
