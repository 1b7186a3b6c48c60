"""Averages of weights over training with a power-function profile, and how to make any of them of a few stored ones.

After t steps theta_bar(t) = sum_s theta(s) integral_{s-1}^{s} p(tau) dtau, with p(tau) = (gamma + 1) tau^gamma /
t^(gamma + 1) on [0, t]. The standard deviation of p in units of t is the `length` of the average: it stays the same
share of the training however long that lasts. Source: Karras et al. 2024, "Analyzing and improving the training
dynamics of diffusion models", section 3 and appendix C.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffusion.errors import UserError

SHORTEST, LONGEST = 0.01, 0.25


def exponent(length: float) -> float:
    """The gamma of a length: length^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)), the root above 0.

    Raises UserError for a length outside [0.01, 0.25]: 0.289 is the plain mean of all weights, and what is much shorter
    than the distance of snapshots cannot be made of them.
    """
    if isinstance(length, bool) or not isinstance(length, (int, float)) or not SHORTEST <= length <= LONGEST:
        raise UserError(
            f"ema={length}: give the length of the average as a share of the training, from {SHORTEST} to {LONGEST}"
        )
    low, high = 0.0, 1 / length
    for _ in range(100):
        middle = (low + high) / 2
        wide = (middle + 1) / ((middle + 2) ** 2 * (middle + 3)) > length**2
        low, high = (middle, high) if wide else (low, middle)
    return low


def decay(step: int, gamma: float) -> float:
    """The beta of step 1, 2, ...: theta_bar = beta theta_bar + (1 - beta) theta keeps the average; beta(1) = 0."""
    return (1 - 1 / step) ** (gamma + 1)


def combination(steps: Sequence[int], gammas: Sequence[float], step: int, gamma: float) -> tuple[Tensor, float]:
    """The weights, float64 (n,), with which n stored averages sum to the one of (step, gamma), and what they miss.

    They minimise |p - sum_i x_i p_i|^2 over [0, infinity) under sum_i x_i = 1, so that weights that stand still are met
    exactly; without that condition, which algorithm 3 of the source leaves out, the error is about ten times as large.
    What is missed is the root of that minimum over |p|: 0 where the average is among the stored ones.
    """
    t = torch.tensor([*steps, step], dtype=torch.float64)
    g = torch.tensor([*gammas, gamma], dtype=torch.float64)
    products = _products(t, g)
    norms = products.diagonal().sqrt()
    unit = products / norms / norms[:, None]
    n = len(steps)
    # The condition, as a Lagrange multiplier's row and column, in the unknowns norms_i x_i.
    share = norms.min() / norms[:n]
    system = torch.zeros(n + 1, n + 1, dtype=torch.float64)
    system[:n, :n], system[:n, n], system[n, :n] = unit[:n, :n], share, share
    right = torch.cat([unit[:n, n], (norms.min() / norms[n])[None]])
    # Averages of neighbouring steps are nearly the same function: the system may be singular to working precision.
    found = (torch.linalg.pinv(system, rtol=1e-12, hermitian=True) @ right)[:n]
    missed = (1 - 2 * found @ unit[:n, n] + found @ unit[:n, :n] @ found).clamp(min=0).sqrt()
    return found * norms[n] / norms[:n], float(missed)


def _products(t: Tensor, g: Tensor) -> Tensor:
    """The integrals of p_i p_j, (n, n).

    Both are powers of tau up to the earlier end, a: (g_i + 1)(g_j + 1) a^(g_i + g_j + 1) / ((g_i + g_j + 1)
    t_i^(g_i + 1) t_j^(g_j + 1)).
    """
    ends, first = torch.minimum(t, t[:, None]).log(), (g + 1).log() - (g + 1) * t.log()
    total = g + g[:, None] + 1
    return (first + first[:, None] + total * ends).exp() / total
