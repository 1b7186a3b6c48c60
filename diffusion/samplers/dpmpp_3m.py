"""The exponential Adams-Bashforth method with three steps of memory."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor

from diffusion.denoiser import Cond, Denoiser
from diffusion.samplers.base import OnStep, Rng, transfer
from diffusion.samplers.exponential import blend


def dpmpp_3m(
    denoiser: Denoiser,
    x: Tensor,
    grid: Tensor,
    cond: Cond | None = None,
    *,
    rng: Rng | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Order 3, one evaluation a step.

    D is the parabola in log(alpha / sigma) through the last three answers, integrated exactly (see `blend`); it is the
    predictor of UniPC (Zhao et al. 2023) of order 3. The first step, and the last to sigma = 0, are DDIM steps, the
    second is one of `dpmpp_2m`. The third-order multistep update in the released code of DPM-Solver++ (Lu et al. 2022)
    and of diffusers takes half of the second derivative, and is of second order.
    """
    scheduler = denoiser.scheduler
    levels, means = (scheduler.log_snr(grid) / 2).tolist(), []
    for i, (t, s) in enumerate(pairwise(grid)):
        means = [denoiser(x, t, cond), *means[:2]]
        x = transfer(scheduler, x, blend(means, levels[i::-1][: len(means)], *levels[i : i + 2]), t, s)
        if on_step is not None:
            on_step(i, x, means[0])
    return x
