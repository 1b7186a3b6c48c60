"""DPM-Solver++ with two steps of memory, on the reverse SDE."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor

from diffusion.denoiser import Cond, Denoiser
from diffusion.samplers.base import OnStep, Rng, ancestral
from diffusion.samplers.exponential import blend


def dpmpp_2m_sde(
    denoiser: Denoiser,
    x: Tensor,
    grid: Tensor,
    cond: Cond | None = None,
    *,
    rng: Rng | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """x_s ~ q(x_s | x_t, x0 = D extrapolated as in `dpmpp_2m`). Second weak order, one evaluation a step.

    The posterior's draw is the exact solution of the reverse SDE for an x0 that stands still, so that this is DDIM at
    eta = 1 with a better x0. The first step, and the last to sigma = 0, take D itself. Source: Lu et al. 2022
    (DPM-Solver++), section 5 and appendix B.5 (SDE-DPM-Solver++ 2M, midpoint).
    """
    if rng is None:
        raise ValueError("a stochastic sampler needs rng")
    scheduler = denoiser.scheduler
    levels, means = (scheduler.log_snr(grid) / 2).tolist(), []
    for i, (t, s) in enumerate(pairwise(grid)):
        means = [denoiser(x, t, cond), *means[:1]]
        x = ancestral(scheduler, x, blend(means, levels[i::-1][: len(means)], *levels[i : i + 2]), t, s, rng)
        if on_step is not None:
            on_step(i, x, means[0])
    return x
