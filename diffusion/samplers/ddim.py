"""DDIM, from deterministic to ancestral."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor

from diffusion.denoiser import Cond, Denoiser, scale
from diffusion.errors import UserError
from diffusion.samplers.base import OnStep, Rng


def ddim(
    denoiser: Denoiser,
    x: Tensor,
    grid: Tensor,
    cond: Cond | None = None,
    *,
    eta: float = 0.0,
    rng: Rng | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Order 1 at eta = 0; eta = 1 draws from the posterior q(x_s | x_t, x0 = D(x_t)). One evaluation a step.

    x_s = a x_t + (alpha_s - alpha_t a) D + tau z, a = sqrt(sigma_s^2 - tau^2) / sigma_t,
    tau = eta sigma_s sqrt(1 - SNR_t / SNR_s). Source: Song et al. 2021 (DDIM), eq. 12 and 16, for any alpha.
    """
    scheduler = denoiser.scheduler
    if not 0 <= eta <= 1:
        raise UserError(f"sampler.eta={eta}: give a number from 0 to 1")
    if eta > 0 and rng is None:
        raise ValueError("a stochastic sampler needs rng")
    for i, (t, s) in enumerate(pairwise(grid)):
        mean = denoiser(x, t, cond)
        alpha_t, sigma_t, alpha_s, sigma_s = (
            scheduler.alpha(t),
            scheduler.sigma(t),
            scheduler.alpha(s),
            scheduler.sigma(s),
        )
        tau = eta * sigma_s * (1 - (alpha_t * sigma_s / (alpha_s * sigma_t)) ** 2).clamp(min=0).sqrt()
        a = (sigma_s**2 - tau**2).clamp(min=0).sqrt() / sigma_t
        x = scale(a, x) * x + scale(alpha_s - alpha_t * a, x) * mean
        if tau > 0:
            x = x + scale(tau, x) * rng(x.shape[1:])
        if on_step is not None:
            on_step(i, x, mean)
    return x
