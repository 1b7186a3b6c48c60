"""Ancestral sampling."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor

from diffusion.denoiser import Cond, Denoiser
from diffusion.errors import UserError
from diffusion.samplers.base import OnStep, Rng, ancestral


def ddpm(
    denoiser: Denoiser,
    x: Tensor,
    grid: Tensor,
    cond: Cond | None = None,
    *,
    variance: float | None = None,
    rng: Rng | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """x_s ~ N(mean of q(x_s | x_t, x0 = D(x_t)), beta^v beta~^(1 - v)), on any grid. One evaluation a step.

    Each step is `ancestral`. variance v: 0 is "fixed small", 1 "fixed large", None what the model has learned, or 0
    where it has not. Sources: Ho et al. 2020, eq. 7 and algorithm 2; Nichol and Dhariwal 2021, eq. 15. Raises UserError
    for a variance outside [0, 1].
    """
    if variance is not None and not (isinstance(variance, (int, float)) and 0 <= variance <= 1):
        raise UserError(f"sampler.variance={variance}: give a number from 0 (small) to 1 (large), or null (learned)")
    if rng is None:
        raise ValueError("a stochastic sampler needs rng")
    for i, (t, s) in enumerate(pairwise(grid)):
        found = denoiser.predict(x, t, cond)
        x = ancestral(denoiser.scheduler, x, found.mean, t, s, rng, variance=found.variance(variance))
        if on_step is not None:
            on_step(i, x, found.mean)
    return x
