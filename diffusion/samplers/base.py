"""What a sampler is, and the one update that all of them are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from diffusion.denoiser import Cond, Denoiser, scale
from diffusion.schedulers import NoiseScheduler

Rng = Callable[[Sequence[int]], Tensor]
"""Draws standard normal noise (B, *shape) for a given shape of one sample; see random.SampleNoise."""

OnStep = Callable[[int, Tensor, Tensor], None]
"""Called after each step with its index, x at the new time, and the estimate of x0 that led there."""


class Sampler(Protocol):
    """Takes x (B, C, *S) at time grid[0] to time grid[-1].

    grid: (steps + 1,) float64, strictly decreasing, on the CPU. At 0 the answer is the data. A stochastic sampler
    draws its noise from `rng`; without one it raises ValueError.
    """

    def __call__(
        self,
        denoiser: Denoiser,
        x: Tensor,
        grid: Tensor,
        cond: Cond | None = None,
        *,
        rng: Rng | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor: ...


def transfer(scheduler: NoiseScheduler, x: Tensor, mean: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Move x from time t to s < t, exactly if E[x0 | x] stayed at `mean` on the way.

    x_s = (sigma_s / sigma_t) x_t + (alpha_s - alpha_t sigma_s / sigma_t) mean. Neither alpha nor sigma_s divides, so
    zero terminal SNR and the last step to sigma = 0 need no special case. Source: Song et al. 2021 (DDIM), eq. 12.
    """
    ratio = scheduler.sigma(s) / scheduler.sigma(t)
    return scale(ratio, x) * x + scale(scheduler.alpha(s) - scheduler.alpha(t) * ratio, x) * mean
