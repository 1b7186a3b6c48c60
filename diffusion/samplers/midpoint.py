"""The midpoint method of flow matching, on any scheduler."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from diffusion.denoiser import Cond, Denoiser, scale
from diffusion.samplers.base import OnStep, Rng, transfer
from diffusion.schedulers import NoiseScheduler


def midpoint(
    denoiser: Denoiser,
    x: Tensor,
    grid: Tensor,
    cond: Cond | None = None,
    *,
    rng: Rng | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Order 2, two evaluations a step, the first step and the last among them.

    The variable of integration is u = sigma / (alpha + sigma), which is t on the flow scheduler and finite everywhere:
    with y = x / (alpha + sigma), dy / du = eps - D = (y - D) / u. From D at t and D_m at the middle m of the step in u,
    a step is made with D + (u_t / u_m) (D_m - D) in the place of D; the last one, to sigma = 0, ends at 2 D_m - D.
    Source: Lipman et al. 2023, section 6, for any alpha and sigma.
    """
    scheduler = denoiser.scheduler
    for i, (t, s) in enumerate(pairwise(grid)):
        mean = denoiser(x, t, cond)
        place = share(scheduler, t)
        middle = (place + share(scheduler, s)) / 2
        m = scheduler.time(-2 * torch.logit(middle))
        there = denoiser(transfer(scheduler, x, mean, t, m), m, cond)
        mean = mean + scale(place / middle, x) * (there - mean)
        x = transfer(scheduler, x, mean, t, s)
        if on_step is not None:
            on_step(i, x, mean)
    return x


def share(scheduler: NoiseScheduler, t: Tensor) -> Tensor:
    """u = sigma / (alpha + sigma) at time t."""
    return scheduler.sigma(t) / (scheduler.alpha(t) + scheduler.sigma(t))
