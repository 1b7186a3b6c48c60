"""DPM-Solver++ with two steps of memory."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor

from diffusion.denoiser import Cond, Denoiser
from diffusion.samplers.base import OnStep, Rng, transfer
from diffusion.samplers.exponential import blend


def dpmpp_2m(
    denoiser: Denoiser,
    x: Tensor,
    grid: Tensor,
    cond: Cond | None = None,
    *,
    rng: Rng | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Order 2, one evaluation a step.

    A DDIM step with D replaced by its extrapolation to the middle of the step in h, the change of log(alpha / sigma):
    D + (h / h_previous) (D - D_previous) / 2. The first step, and the last to sigma = 0, are DDIM steps. Source: Lu
    et al. 2022 (DPM-Solver++), algorithm 2.
    """
    scheduler = denoiser.scheduler
    levels, means = (scheduler.log_snr(grid) / 2).tolist(), []
    for i, (t, s) in enumerate(pairwise(grid)):
        means = [denoiser(x, t, cond), *means[:1]]
        x = transfer(scheduler, x, blend(means, levels[i::-1][: len(means)], *levels[i : i + 2]), t, s)
        if on_step is not None:
            on_step(i, x, means[0])
    return x
