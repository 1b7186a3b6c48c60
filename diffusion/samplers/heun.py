"""Heun's method on the probability-flow ODE."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from diffusion.denoiser import Cond, Denoiser, scale
from diffusion.samplers.base import OnStep, Rng, transfer
from diffusion.samplers.churn import Churn

# Where next to nothing is left of the data, sigma / alpha runs to infinity, and a trapezoid in it would overshoot.
FAR = 100.0


def heun(
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
    """Order 2, two evaluations a step; one in the last step to sigma = 0, and in a step from sigma > 100 alpha.

    The variable of integration is l = sigma / alpha: d(x / alpha) = eps dl, with eps = (x - alpha D) / sigma. To step
    with the mean of eps at t and, after a DDIM step, at s is to put D + (l_t / l_s) (D_s - D) / 2 in the place of D.
    With churn (see `Churn`) it is stochastic. Source: Karras et al. 2022, algorithms 1 and 2, for any alpha.
    """
    scheduler = denoiser.scheduler
    stir = Churn(len(grid) - 1, churn, churn_low, churn_high, churn_noise, rng)
    for i, (t, s) in enumerate(pairwise(grid)):
        x, t = stir(scheduler, x, t)
        estimate = mean = denoiser(x, t, cond)
        if scheduler.sigma(s) > 0 and scheduler.sigma(t) <= FAR * scheduler.alpha(t):
            x_s = transfer(scheduler, x, mean, t, s)
            ratio = torch.exp((scheduler.log_snr(s) - scheduler.log_snr(t)) / 2)
            estimate = mean + scale(ratio / 2, x) * (denoiser(x_s, s, cond) - mean)
        x = transfer(scheduler, x, estimate, t, s)
        if on_step is not None:
            on_step(i, x, mean)
    return x
