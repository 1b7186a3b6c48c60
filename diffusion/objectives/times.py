"""Time densities: how often training sees each noise level.

A density maps uniform numbers to times by its inverse distribution function, so that the caller owns the randomness.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from diffusion.schedulers import NoiseScheduler


class TimeDensity(Protocol):
    """(u, scheduler) -> times, float64 with the shape of u in [0, 1)."""

    def __call__(self, u: Tensor, scheduler: NoiseScheduler) -> Tensor: ...


@dataclass(frozen=True)
class UniformTime:
    """t = u. Source: Ho et al. 2020, algorithm 1."""

    def __call__(self, u: Tensor, scheduler: NoiseScheduler) -> Tensor:
        return u


@dataclass(frozen=True)
class LogNormal:
    """log(sigma / alpha) ~ N(mean, std^2). Source: Karras et al. 2022, table 1 and appendix F.3."""

    mean: float = -1.2
    std: float = 1.2

    def __call__(self, u: Tensor, scheduler: NoiseScheduler) -> Tensor:
        return scheduler.time(-2 * (self.mean + self.std * torch.special.ndtri(u)))


@dataclass(frozen=True)
class LogitNormal:
    """logit(t) ~ N(mean, std^2). Source: Esser et al. 2024, section 3.1."""

    mean: float = 0.0
    std: float = 1.0

    def __call__(self, u: Tensor, scheduler: NoiseScheduler) -> Tensor:
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u))
