"""Churn: fresh noise before a step, which washes out the errors of the steps before."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.errors import UserError
from diffusion.samplers.base import Rng, diffused
from diffusion.schedulers import NoiseScheduler


@dataclass(frozen=True)
class Churn:
    """Takes x at time t back to the noise level (1 + gamma) sigma / alpha, where low <= sigma / alpha <= high.

    gamma = min(amount / steps, sqrt(2) - 1), and the level stays within the scheduler's own. The noise that comes in
    has `noise` times the standard deviation of the forward process. Source: Karras et al. 2022, algorithm 2, for any
    alpha. Raises UserError for values that mean nothing, ValueError for an amount above 0 without `rng`.
    """

    steps: int
    amount: float
    low: float
    high: float
    noise: float
    rng: Rng | None

    def __post_init__(self) -> None:
        if not (self.amount >= 0 and 0 <= self.low <= self.high and self.noise > 0):
            raise UserError(
                f"sampler.churn={self.amount} churn_low={self.low} churn_high={self.high} churn_noise={self.noise}: "
                "give churn >= 0, 0 <= churn_low <= churn_high and churn_noise > 0"
            )
        if self.amount > 0 and self.rng is None:
            raise ValueError("a stochastic sampler needs rng")

    def __call__(self, scheduler: NoiseScheduler, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, C, *S) and its time, after the noise has come in."""
        log_snr = scheduler.log_snr(t)
        if self.amount == 0 or not self.low <= torch.exp(-log_snr / 2) <= self.high:
            return x, t
        gamma = min(self.amount / self.steps, math.sqrt(2) - 1)
        lowest = scheduler.log_snr(torch.ones_like(t))
        back = scheduler.time((log_snr - 2 * math.log1p(gamma)).clamp(min=lowest)).clamp(max=1.0)
        if back <= t:
            return x, t
        return diffused(scheduler, x, t, back, self.rng, self.noise), back
