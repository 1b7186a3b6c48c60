"""The variance-exploding process of EDM."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.errors import UserError
from diffusion.schedulers.base import NoiseScheduler


@dataclass(frozen=True)
class EDM(NoiseScheduler):
    """alpha = 1, sigma(t) = sigma_max t^rho: a uniform grid in t is the grid of Karras et al. 2022, eq. 5."""

    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        if not (self.sigma_max > 0 and self.rho > 0):
            raise UserError(f"scheduler.sigma_max={self.sigma_max} rho={self.rho}: both must be above 0")

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_max * t**self.rho

    def time(self, log_snr: Tensor) -> Tensor:
        return (torch.exp(-log_snr / 2) / self.sigma_max) ** (1 / self.rho)
