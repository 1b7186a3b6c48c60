"""Time densities: how often training sees each noise level.

A density maps uniform numbers to times by its inverse distribution function, so that the caller owns the randomness.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from diffusion.errors import UserError
from diffusion.schedulers import NoiseScheduler


class TimeDensity(Protocol):
    """(u, scheduler) -> times, float64 with the shape of u in [0, 1).

    level: the one noise level sigma / alpha that it gives; None where there are many.
    """

    level: float | None

    def __call__(self, u: Tensor, scheduler: NoiseScheduler) -> Tensor: ...


def held(times: Tensor, scheduler: NoiseScheduler, limit: float = 20.0) -> Tensor:
    """The times in (0, 1] where |log-SNR| <= limit: at sigma = 0 a target is 0 / 0, and a uniform number can be 0."""
    ends = scheduler.time(torch.tensor([limit, -limit], dtype=torch.float64))
    return times.clamp(ends[0], ends[1].clamp(max=1.0))


@dataclass(frozen=True)
class UniformTime:
    """t = u. Source: Ho et al. 2020, algorithm 1."""

    level = None

    def __call__(self, u: Tensor, scheduler: NoiseScheduler) -> Tensor:
        return u


@dataclass(frozen=True)
class UniformBetween:
    """Uniform over the times at which the log-SNR lies between `low` and `high`. Source: Kingma et al. 2021, section 5.

    Raises UserError unless low < high.
    """

    high: float = 13.0
    low: float = -9.0
    level = None

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise UserError(f"objective.times.high={self.high} low={self.low}: give low < high, both log-SNRs")

    def __call__(self, u: Tensor, scheduler: NoiseScheduler) -> Tensor:
        ends = scheduler.time(torch.tensor([self.high, self.low], dtype=torch.float64)).clamp(max=1.0).to(u.device)
        return torch.lerp(ends[0], ends[1], u)


@dataclass(frozen=True)
class LogNormal:
    """log(sigma / alpha) ~ N(mean, std^2). Source: Karras et al. 2022, table 1 and appendix F.3."""

    mean: float = -1.2
    std: float = 1.2
    level = None

    def __call__(self, u: Tensor, scheduler: NoiseScheduler) -> Tensor:
        return scheduler.time(-2 * (self.mean + self.std * torch.special.ndtri(u)))


@dataclass(frozen=True)
class LogitNormal:
    """logit(t) ~ N(mean, std^2). Source: Esser et al. 2024, section 3.1."""

    mean: float = 0.0
    std: float = 1.0
    level = None

    def __call__(self, u: Tensor, scheduler: NoiseScheduler) -> Tensor:
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u))


@dataclass(frozen=True)
class OneLevel:
    """The time at which sigma / alpha = level, whatever u: x_t / alpha is x0 with noise of that standard deviation.

    Raises UserError for a level that is not positive, or that the scheduler does not reach.
    """

    level: float = 0.5

    def __post_init__(self) -> None:
        if not self.level > 0:
            raise UserError(f"objective.times.level={self.level}: give a number above 0, in units of images in [-1, 1]")

    def __call__(self, u: Tensor, scheduler: NoiseScheduler) -> Tensor:
        t = scheduler.time(torch.tensor(-2 * math.log(self.level), dtype=torch.float64))
        if not 0 < t <= 1:
            raise UserError(
                f"objective.times.level={self.level} is beyond the end of this scheduler: give a smaller one"
            )
        return t.to(u.device).expand(u.shape)
