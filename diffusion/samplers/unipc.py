"""UniPC: a multistep predictor with a corrector that costs nothing."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor

from diffusion.denoiser import Cond, Denoiser
from diffusion.errors import UserError
from diffusion.samplers.base import OnStep, Rng, transfer
from diffusion.samplers.exponential import blend


def unipc(
    denoiser: Denoiser,
    x: Tensor,
    grid: Tensor,
    cond: Cond | None = None,
    *,
    order: int = 3,
    rng: Rng | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Order 4 with order=3, the default: one more than `order`. One evaluation a step.

    The predictor integrates the polynomial in log(alpha / sigma) through the last `order` answers D (see `blend`);
    when D is known at the new time, the corrector makes the step again with it among them, and D is not asked again.
    The first steps have fewer answers; a step from alpha = 0, and the last to sigma = 0, are DDIM steps. Source: Zhao
    et al. 2023 (UniPC), algorithms 1 and 2, with B_2(h) = e^h - 1. Raises UserError for an order other than 1, 2 or 3.
    """
    if order not in (1, 2, 3):
        raise UserError(f"sampler.order={order}: give 1, 2 or 3")
    scheduler = denoiser.scheduler
    levels, means = (scheduler.log_snr(grid) / 2).tolist(), []
    before = x
    for i, (t, s) in enumerate(pairwise(grid)):
        mean = denoiser(x, t, cond)
        if i > 0:
            known = [*means, mean], [*levels[i - 1 :: -1][: len(means)], levels[i]]
            x = transfer(scheduler, before, blend(*known, *levels[i - 1 : i + 1]), grid[i - 1], t)
        means, before = [mean, *means][:order], x
        x = transfer(scheduler, x, blend(means, levels[i::-1][: len(means)], *levels[i : i + 2]), t, s)
        if on_step is not None:
            on_step(i, x, mean)
    return x
