"""A few times that were measured on a run's own model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from diffusion.errors import UserError
from diffusion.grids.base import check_steps
from diffusion.schedulers import NoiseScheduler


@dataclass(frozen=True)
class Optimised:
    """Times at the given log-SNRs, rising, then 0. `python -m diffusion tune_grid` finds them, and tasks fill them in.

    Raises UserError without levels, or unless there are `steps` of them.
    """

    steps: int = 8
    levels: Sequence[float] | None = None

    def __post_init__(self) -> None:
        check_steps(self.steps)
        if self.levels is None:
            raise UserError(
                "grid=optimised belongs to a trained run and its sampler: train with another grid, then "
                f"`python -m diffusion tune_grid run=RUN_DIR steps={self.steps}`"
            )
        if len(self.levels) != self.steps or not all(a < b for a, b in pairwise(self.levels)):
            raise UserError(f"grid.levels={list(self.levels)}: give grid.steps={self.steps} log-SNRs, rising")

    def __call__(self, scheduler: NoiseScheduler) -> Tensor:
        times = scheduler.time(torch.tensor(self.levels, dtype=torch.float64)).clamp(max=1.0)
        if not (times.diff() < 0).all():
            last = scheduler.log_snr(torch.ones((), dtype=torch.float64)).item()
            raise UserError(
                f"grid.levels={list(self.levels)}: the schedule ends at log-SNR {last:.3g}, above two of them"
            )
        return torch.cat([times, times.new_zeros(1)])
