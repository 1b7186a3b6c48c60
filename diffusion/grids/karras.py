"""The grid of EDM, on any scheduler."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.errors import UserError
from diffusion.grids.base import check_steps
from diffusion.schedulers import NoiseScheduler


@dataclass(frozen=True)
class Karras:
    """Noise levels sigma / alpha at equal distance in their rho-th root, then 0. Source: Karras et al. 2022, eq. 5.

    The first level is sigma_max, or the scheduler's own at t = 1 where that is lower.
    """

    steps: int = 18
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        check_steps(self.steps)
        if not 0 < self.sigma_min < self.sigma_max:
            raise UserError(
                f"grid.sigma_min={self.sigma_min} and grid.sigma_max={self.sigma_max}: give 0 < sigma_min < sigma_max"
            )

    def __call__(self, scheduler: NoiseScheduler) -> Tensor:
        last = scheduler.log_snr(torch.ones((), dtype=torch.float64)).item()
        highest = min(self.sigma_max, math.exp(min(-last / 2, 700.0)))
        if highest <= self.sigma_min:
            raise UserError(f"grid.sigma_min={self.sigma_min} is not below the highest noise level, {highest:.3g}")
        roots = torch.linspace(
            highest ** (1 / self.rho), self.sigma_min ** (1 / self.rho), self.steps, dtype=torch.float64
        )
        times = scheduler.time(-2 * self.rho * torch.log(roots)).clamp(max=1.0)
        return torch.cat([times, times.new_zeros(1)])
