"""Ancestral sampling."""

from __future__ import annotations

from torch import Tensor

from diffusion.denoiser import Cond, Denoiser
from diffusion.samplers.base import OnStep, Rng
from diffusion.samplers.ddim import ddim


def ddpm(
    denoiser: Denoiser,
    x: Tensor,
    grid: Tensor,
    cond: Cond | None = None,
    *,
    rng: Rng | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """x_s ~ q(x_s | x_t, x0 = D(x_t)), on any grid: DDIM at eta = 1. One evaluation a step.

    Its variance is the posterior's (beta tilde, "fixed small"). Source: Ho et al. 2020, eq. 6 and 7, algorithm 2.
    """
    return ddim(denoiser, x, grid, cond, eta=1.0, rng=rng, on_step=on_step)
