"""Times at equal distance in log-SNR."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.errors import UserError
from diffusion.grids.base import check_steps
from diffusion.schedulers import NoiseScheduler


@dataclass(frozen=True)
class LogSNR:
    """Log-SNR at equal distance from `low` (or the scheduler's own at t = 1, where that is higher) to `high`, then 0.

    Source: Lu et al. 2022 (DPM-Solver), section 3.
    """

    steps: int = 20
    low: float = -10.0
    high: float = 10.0

    def __post_init__(self) -> None:
        check_steps(self.steps)
        if not self.low < self.high:
            raise UserError(f"grid.low={self.low} and grid.high={self.high}: give low < high, both log-SNRs")

    def __call__(self, scheduler: NoiseScheduler) -> Tensor:
        last = scheduler.log_snr(torch.ones((), dtype=torch.float64)).item()
        if last >= self.high:
            raise UserError(f"grid.high={self.high} is not above the scheduler's log-SNR at t = 1, {last:.3g}")
        levels = torch.linspace(max(self.low, last), self.high, self.steps, dtype=torch.float64)
        times = scheduler.time(levels).clamp(max=1.0)
        return torch.cat([times, times.new_zeros(1)])
