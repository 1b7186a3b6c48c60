"""DPM-Solver++ with two steps of memory."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from diffusion.denoiser import Cond, Denoiser
from diffusion.samplers.base import OnStep, Rng, transfer


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
    half_log_snr = scheduler.log_snr(grid) / 2
    h = half_log_snr.diff()
    previous = None
    for i, (t, s) in enumerate(pairwise(grid)):
        mean = denoiser(x, t, cond)
        # An infinite h is a step from alpha = 0 or to sigma = 0.
        if previous is None or not torch.isfinite(h[i]):
            estimate = mean
        else:
            estimate = mean + (h[i] / h[i - 1] / 2).item() * (mean - previous)
        x = transfer(scheduler, x, estimate, t, s)
        previous = mean
        if on_step is not None:
            on_step(i, x, mean)
    return x
