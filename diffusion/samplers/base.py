"""What a sampler is, and the two updates that all of them are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from diffusion.denoiser import Cond, Denoiser, scale
from diffusion.schedulers import NoiseScheduler, posterior

Rng = Callable[[Sequence[int]], Tensor]
"""Draws standard normal noise (B, *shape) for a given shape of one sample; see random.SampleNoise."""

OnStep = Callable[[int, Tensor, Tensor], None]
"""Called after each step with its index, x at the new time, and an estimate of x0 that led there."""


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
    """Move x from time t > 0 to s, exactly if E[x0 | x] stayed at `mean` on the way.

    x_s = (sigma_s / sigma_t) x_t + (alpha_s - alpha_t sigma_s / sigma_t) mean. Neither alpha nor sigma_s divides, so
    zero terminal SNR and the last step to sigma = 0 need no special case. A deterministic sampler is a choice of
    `mean`. Source: Song et al. 2021 (DDIM), eq. 12.
    """
    ratio = scheduler.sigma(s) / scheduler.sigma(t)
    return scale(ratio, x) * x + scale(scheduler.alpha(s) - scheduler.alpha(t) * ratio, x) * mean


def ancestral(
    scheduler: NoiseScheduler,
    x: Tensor,
    mean: Tensor,
    t: Tensor,
    s: Tensor,
    rng: Rng | None,
    eta: float = 1.0,
    variance: float | Tensor = 0.0,
) -> Tensor:
    """Draw x at time s < t; at eta = 1 from the posterior q(x_s | x_t, x0 = mean), at eta = 0 it is `transfer`.

    x_s = a x_t + (alpha_s - alpha_t a) mean + tau z, a = sqrt(sigma_s^2 - tau^2) / sigma_t, tau = eta sqrt(beta~),
    where beta~ and beta are the two variances of `Posterior`. variance v, a number or (B, C, *S), widens the noise
    beyond what `a` accounts for: at eta = 1 its variance is beta^v beta~^(1 - v). The step to sigma = 0 draws no
    noise. Sources: Song et al. 2021 (DDIM), eq. 12 and 16, for any alpha; Nichol and Dhariwal 2021, eq. 15.
    """
    sigma_t, sigma_s = scheduler.sigma(t), scheduler.sigma(s)
    tau = eta * posterior(scheduler, t, s).small.sqrt()
    a = (sigma_s**2 - tau**2).clamp(min=0).sqrt() / sigma_t
    x = scale(a, x) * x + scale(scheduler.alpha(s) - scheduler.alpha(t) * a, x) * mean
    if not tau > 0:
        return x
    return x + scale(tau, x) * scale(sigma_t / sigma_s, x) ** variance * rng(x.shape[1:])


def diffused(scheduler: NoiseScheduler, x: Tensor, s: Tensor, t: Tensor, rng: Rng, gain: float = 1.0) -> Tensor:
    """Draw x at time t > s from q(x_t | x_s), the forward process, its noise `gain` times as large.

    x_t = (alpha_t / alpha_s) x_s + gain sqrt(beta) z, beta = sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2.
    """
    added = gain * posterior(scheduler, t, s).large.sqrt()
    return scale(scheduler.alpha(t) / scheduler.alpha(s), x) * x + scale(added, x) * rng(x.shape[1:])
