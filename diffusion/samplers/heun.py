"""Heun's method on the probability-flow ODE."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor

from diffusion.denoiser import Cond, Denoiser, scale
from diffusion.samplers.base import OnStep, Rng, transfer

# Where next to nothing is left of the data, sigma / alpha runs to infinity, and a trapezoid in it would overshoot.
FAR = 100.0


def heun(
    denoiser: Denoiser,
    x: Tensor,
    grid: Tensor,
    cond: Cond | None = None,
    *,
    rng: Rng | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Order 2, two evaluations a step; one in the last step to sigma = 0, and in a step from sigma > 100 alpha.

    The variable of integration is sigma / alpha: d(x / alpha) = eps d(sigma / alpha), with
    eps = (x - alpha D) / sigma. A step is the DDIM step, corrected by
    (sigma_s - alpha_s sigma_t / alpha_t) (eps_s - eps_t) / 2. Source: Karras et al. 2022, algorithm 1, for any alpha.
    """
    scheduler = denoiser.scheduler

    def eps(x: Tensor, mean: Tensor, t: Tensor) -> Tensor:
        return (x - scale(scheduler.alpha(t), x) * mean) / scale(scheduler.sigma(t), x)

    for i, (t, s) in enumerate(pairwise(grid)):
        mean = denoiser(x, t, cond)
        x_s = transfer(scheduler, x, mean, t, s)
        alpha_t, sigma_s = scheduler.alpha(t), scheduler.sigma(s)
        if sigma_s > 0 and scheduler.sigma(t) <= FAR * alpha_t:
            change = eps(x_s, denoiser(x_s, s, cond), s) - eps(x, mean, t)
            x_s = x_s + scale(sigma_s - scheduler.alpha(s) * scheduler.sigma(t) / alpha_t, x) / 2 * change
        x = x_s
        if on_step is not None:
            on_step(i, x, mean)
    return x
