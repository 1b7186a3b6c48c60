"""DDIM inversion: from an image to the noise that DDIM would make it of."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor

from diffusion.denoiser import Cond, Denoiser
from diffusion.samplers.base import OnStep, transfer


def ddim_inversion(
    denoiser: Denoiser,
    x: Tensor,
    grid: Tensor,
    cond: Cond | None = None,
    *,
    on_step: OnStep | None = None,
) -> Tensor:
    """Takes x (B, C, *S) at time grid[-1] > 0 to time grid[0], the grid of a sampler walked upwards. Order 1.

    x_s = (sigma_s / sigma_t) x_t + (alpha_s - alpha_t sigma_s / sigma_t) D(x_t) for s > t: the DDIM step, with D where
    it begins. One evaluation a step. `ddim` along the same grid comes back to x up to an error that twice the steps
    halve. At sigma = 0 nothing is known of the noise, so begin at a small time: with alpha x0 + sigma z, or alpha x0
    where sigma is small beside the data. Source: Song et al. 2021 (DDIM), section 4.3. Raises ValueError for a grid
    that ends at sigma = 0.
    """
    scheduler = denoiser.scheduler
    if not scheduler.sigma(grid[-1]) > 0:
        raise ValueError("inversion cannot begin at sigma = 0: leave the last time of the grid out, grid[:-1]")
    for i, (t, s) in enumerate(pairwise(grid.flip(0))):
        mean = denoiser(x, t, cond)
        x = transfer(scheduler, x, mean, t, s)
        if on_step is not None:
            on_step(i, x, mean)
    return x
