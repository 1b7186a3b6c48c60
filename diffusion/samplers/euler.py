"""Euler's method on the probability-flow ODE."""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor

from diffusion.denoiser import Cond, Denoiser
from diffusion.samplers.base import OnStep, Rng, transfer
from diffusion.samplers.churn import Churn


def euler(
    denoiser: Denoiser,
    x: Tensor,
    grid: Tensor,
    cond: Cond | None = None,
    *,
    churn: float = 0.0,
    churn_low: float = 0.0,
    churn_high: float = math.inf,
    churn_noise: float = 1.0,
    rng: Rng | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Order 1, one evaluation a step. With churn (see `Churn`) it is stochastic.

    Without churn it is DDIM at eta = 0 under three names, for the line from x_t through D is straight in each: Euler in
    sigma / alpha (Karras et al. 2022), Euler in t on the flow scheduler (Lipman et al. 2023), and DPM-Solver++ of order
    1 (Lu et al. 2022).
    """
    scheduler = denoiser.scheduler
    stir = Churn(len(grid) - 1, churn, churn_low, churn_high, churn_noise, rng)
    for i, (t, s) in enumerate(pairwise(grid)):
        x, t = stir(scheduler, x, t)
        mean = denoiser(x, t, cond)
        x = transfer(scheduler, x, mean, t, s)
        if on_step is not None:
            on_step(i, x, mean)
    return x
