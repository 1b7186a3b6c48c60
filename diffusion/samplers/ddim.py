"""DDIM, from deterministic to ancestral."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor

from diffusion.denoiser import Cond, Denoiser
from diffusion.errors import UserError
from diffusion.samplers.base import OnStep, Rng, ancestral


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

    Each step is `ancestral` with D. Source: Song et al. 2021 (DDIM), eq. 12 and 16, for any alpha. Raises UserError for
    an eta outside [0, 1].
    """
    if not 0 <= eta <= 1:
        raise UserError(f"sampler.eta={eta}: give a number from 0 to 1")
    if eta > 0 and rng is None:
        raise ValueError("a stochastic sampler needs rng")
    for i, (t, s) in enumerate(pairwise(grid)):
        mean = denoiser(x, t, cond)
        x = ancestral(denoiser.scheduler, x, mean, t, s, rng, eta)
        if on_step is not None:
            on_step(i, x, mean)
    return x
